"""A Lago for tests and the demo: customers, plans, wallets, subscriptions, usage, invoices, webhooks, in memory.

A stand-in, not Lago: it follows what the sources say (getlago/lago-api, commit 1b1c24a6) and Lago's OpenAPI document,
and computes with arithmetic of its own. Not in it: add-ons, one-off invoices, payment requests, entitlements,
progressive billing, recurring top-ups, alerts; charges paid in advance are kept, never billed, fixed charges are
standard ones in arrears, and minimum commitments are those of plans whose charges have the plan's interval.

Under ``/api/v1`` it wants ``Authorization: Bearer`` with the configured key. Beside it, without a key, are the
controls under ``/sandbox``: see ``controls``.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.sandbox.lago.billing import Billing
from sidecar.sandbox.lago.clock import Clock, ClockError, instant
from sidecar.sandbox.lago.config import DefaultTax, LagoConfig
from sidecar.sandbox.lago.controls import Controls
from sidecar.sandbox.lago.coupons import CouponsApi
from sidecar.sandbox.lago.credit_notes import CreditNotesApi
from sidecar.sandbox.lago.customers import CustomersApi
from sidecar.sandbox.lago.endpoints import EndpointsApi
from sidecar.sandbox.lago.fees import Fees
from sidecar.sandbox.lago.ingest import EventsApi
from sidecar.sandbox.lago.invoices import InvoicesApi
from sidecar.sandbox.lago.invoicing import Invoicing
from sidecar.sandbox.lago.lago_faults import LagoFault, LagoFaults
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Call, Refusal, bad_request, json_answer, not_found, path_values, unauthorized
from sidecar.sandbox.lago.lifecycle import Lifecycle
from sidecar.sandbox.lago.metrics import MetricsApi
from sidecar.sandbox.lago.payments import Payments
from sidecar.sandbox.lago.plans import PlansApi
from sidecar.sandbox.lago.prepaid import Prepaid
from sidecar.sandbox.lago.records import Customer, Plan
from sidecar.sandbox.lago.signatures import Signatures
from sidecar.sandbox.lago.subscriptions import SubscriptionsApi
from sidecar.sandbox.lago.taxes import TaxesApi
from sidecar.sandbox.lago.topups import TopUps
from sidecar.sandbox.lago.usage import UsageApi
from sidecar.sandbox.lago.wallets import WalletsApi
from sidecar.sandbox.lago.webhooks import Webhooks

__all__ = ["API", "DefaultTax", "Lago", "LagoConfig", "LagoFault"]

API = "/api/v1"
TICK_S = 1.0
_PASS = LagoFault()
#: What a handler answers: JSON, plain text, or nothing but the status.
Answer = object
ApiHandler = Callable[[Call], Answer]
_TICKER: web.AppKey[asyncio.Task[None]] = web.AppKey("ticker", asyncio.Task)


class Lago:
    """The stand-in's state and its application. In-process, tests move ``clock`` and call :meth:`advance_to`."""

    def __init__(self, config: LagoConfig | None = None) -> None:
        self.config = config or LagoConfig()
        self.issuer = self.config.issuer
        self.clock = Clock(self.config.now)
        self.store = store = Store(self.config, self.clock)
        self.faults = LagoFaults(self.config.seed)
        self.requests: Counter[str] = Counter()
        self.signatures = Signatures(self.config.hmac_key, lambda: self.issuer)
        self.webhooks = Webhooks(store, self.signatures)
        fees, prepaid = Fees(store), Prepaid(store)
        self._usage = UsageApi(store, fees)
        self.payments = Payments(store, prepaid, self._usage)
        invoicing = Invoicing(store, fees, prepaid, self.payments, self._usage)
        self._lifecycle = Lifecycle(store, invoicing)
        self._top_ups = TopUps(store, prepaid, invoicing, self._usage)
        self._customers, self._taxes, self._metrics = CustomersApi(store), TaxesApi(store), MetricsApi(store)
        self._plans, self._events = PlansApi(store), EventsApi(store)
        self._wallets = WalletsApi(store, self._top_ups, self._usage)
        self._subscriptions = SubscriptionsApi(store, self._lifecycle, self._plans, self._customers)
        self._invoices = InvoicesApi(store, invoicing, self.payments)
        self._endpoints = EndpointsApi(store, self.signatures)
        self._coupons, self._credit_notes = CouponsApi(store), CreditNotesApi(store)
        self._billing = Billing(store, self._lifecycle, invoicing, self._usage, self._wallets, self._events)
        self._customers.on_delete, self._plans.on_delete = self._customer_deleted, self._plan_deleted

    def __repr__(self) -> str:
        return f"Lago({self.clock!r}, {self.store!r}, {self.webhooks!r}, {self.faults!r})"

    def advance_to(self, when: datetime | float) -> None:
        """Moves the clock forward, running every job that falls due on the way at its own time.

        Raises :class:`ClockError` for an instant that has passed.
        """
        target = when if isinstance(when, datetime) else instant(when)
        if target < self.clock.now():
            raise ClockError(f"the clock stands at {self.clock.unix_s()} and does not go back")
        self._billing.run_until(target)
        self.clock.at_least(target)

    def tick(self) -> None:
        """Runs every job that is due by now."""
        self._billing.run_until(self.clock.now())

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_middleware(self)], client_max_size=self.config.body_bytes_max)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)
        for method, path, handler in self._routes():
            app.router.add_route(method, API + path, _adapted(self, handler, API + path))
        app.router.add_route("GET", "/health", _adapted(self, self._health))
        for method, path, handler in Controls(self, self._invoices).routes():
            app.router.add_route(method, f"/sandbox{path}", _adapted(self, handler))
        return app

    def _routes(self) -> list[tuple[str, str, ApiHandler]]:
        customers, wallets, subscriptions = self._customers, self._wallets, self._subscriptions
        invoices, endpoints, events, top_ups = self._invoices, self._endpoints, self._events, self._top_ups
        coupons, notes = self._coupons, self._credit_notes
        found: list[tuple[str, str, ApiHandler]] = [
            ("POST", "/coupons", coupons.create),
            ("GET", "/coupons", coupons.list),
            ("GET", "/coupons/{code}", coupons.get),
            ("DELETE", "/coupons/{code}", coupons.delete),
            ("POST", "/applied_coupons", coupons.apply),
            ("GET", "/applied_coupons", coupons.list_applied),
            ("DELETE", "/customers/{external_id}/applied_coupons/{lago_id}", coupons.remove),
            ("POST", "/credit_notes", notes.create),
            ("GET", "/credit_notes", notes.list),
            ("GET", "/credit_notes/{lago_id}", notes.get),
            ("PUT", "/credit_notes/{lago_id}/void", notes.void),
            ("POST", "/customers", customers.upsert),
            ("GET", "/customers", customers.list),
            ("GET", "/customers/{external_id}", customers.get),
            ("DELETE", "/customers/{external_id}", customers.delete),
            ("GET", "/customers/{external_id}/current_usage", self._usage.show),
            ("GET", "/customers/{external_id}/invoices", invoices.list_of_customer),
            ("GET", "/customers/{external_id}/wallets", wallets.list_of_customer),
            ("POST", "/customers/{external_id}/wallets", wallets.create_of_customer),
            ("GET", "/customers/{external_id}/wallets/{code}", wallets.get_of_customer),
            ("POST", "/subscriptions", subscriptions.create),
            ("GET", "/subscriptions", subscriptions.list),
            ("GET", "/subscriptions/{external_id}", subscriptions.get),
            ("GET", "/subscriptions/{external_id}/fixed_charges", subscriptions.fixed_charges),
            ("PUT", "/subscriptions/{external_id}", subscriptions.update),
            ("DELETE", "/subscriptions/{external_id}", subscriptions.terminate),
            ("POST", "/wallets", wallets.create),
            ("GET", "/wallets", wallets.list),
            ("GET", "/wallets/{lago_id}", wallets.get),
            ("PUT", "/wallets/{lago_id}", wallets.update),
            ("DELETE", "/wallets/{lago_id}", wallets.terminate),
            ("GET", "/wallets/{lago_id}/wallet_transactions", top_ups.list),
            ("POST", "/wallet_transactions", top_ups.create),
            ("GET", "/wallet_transactions/{lago_id}", top_ups.get),
            ("POST", "/events", events.create),
            ("GET", "/events", events.list),
            ("POST", "/events/batch", events.create_batch),
            ("GET", "/events/{transaction_id}", events.get),
            ("GET", "/invoices", invoices.list),
            ("GET", "/invoices/{lago_id}", invoices.get),
            ("PUT", "/invoices/{lago_id}", invoices.update),
            ("PUT", "/invoices/{lago_id}/refresh", invoices.refresh),
            ("PUT", "/invoices/{lago_id}/finalize", invoices.finalize),
            ("POST", "/invoices/{lago_id}/void", invoices.void),
            ("POST", "/invoices/{lago_id}/retry_payment", invoices.retry_payment),
            ("GET", "/fees", invoices.fees),
            ("GET", "/fees/{lago_id}", invoices.fee),
            ("GET", "/webhooks/public_key", endpoints.public_key),
            ("GET", "/webhooks/json_public_key", endpoints.json_public_key),
        ]
        for path, name, api in (
            ("/billable_metrics", "code", self._metrics),
            ("/plans", "code", self._plans),
            ("/taxes", "code", self._taxes),
            ("/webhook_endpoints", "lago_id", endpoints),
        ):
            found += [
                ("POST", path, api.create),
                ("GET", path, api.list),
                ("GET", f"{path}/{{{name}}}", api.get),
                ("PUT", f"{path}/{{{name}}}", api.update),
                ("DELETE", f"{path}/{{{name}}}", api.delete),
            ]
        return found

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/api/"):
            return await _answered(request, handler)
        if request.match_info.http_exception is not None:
            # What there is no route for wants no key either, and Lago has no 405 for a method.
            unknown = not_found("resource")
            return json_answer(unknown.body, unknown.status)
        resource = request.match_info.route.resource
        self.requests[f"{request.method} {resource.canonical if resource else 'unknown'}"] += 1
        self.issuer = self.issuer or str(request.url.origin())
        fault = self.faults.next(request.method, request.path) or _PASS
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        if fault.drop == "before":
            return _hang_up(request)
        if fault.status or fault.body:
            return _fault_answer(fault)
        if not self._is_authorised(request):
            return json_answer(unauthorized().body, 401)
        answer = await _answered(request, handler)
        return _hang_up(request) if fault.drop == "after" else answer

    def _is_authorised(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.config.api_key.encode())
        return scheme.lower() == "bearer" and right

    def handle(self, handler: ApiHandler, call: Call) -> Answer:
        """Answers a request, then runs the jobs that it queued: the answer does not know of them yet."""
        if self.config.auto_bill:
            self.tick()
        answer = handler(call)
        self.store.run_jobs()
        return answer

    def _health(self, call: Call) -> Answer:
        """Beside the API, and without a key (lago-api ``app/controllers/application_controller.rb``)."""
        url = f"https://github.com/getlago/lago-api/tree/{self.config.version}"
        return {"version": self.config.version, "github_url": url, "message": "Success"}

    async def _start(self, app: web.Application) -> None:
        await self.webhooks.start()
        if self.config.auto_bill:
            app[_TICKER] = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    async def _stop(self, app: web.Application) -> None:
        ticker = app.get(_TICKER)
        if ticker is not None:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        await self.webhooks.stop()

    def _customer_deleted(self, customer: Customer) -> None:
        self._end_all([item.id for item in self.store.subscriptions if item.customer is customer])
        for wallet in self.store.wallets_of(customer):
            self._wallets.end(wallet)

    def _plan_deleted(self, plan: Plan) -> None:
        self._end_all([item.id for item in self.store.subscriptions if plan in (item.plan, item.plan.parent)])

    def _end_all(self, ids: list[str]) -> None:
        for item in list(self.store.subscriptions):
            if item.id in ids and item.status == "active":
                self._lifecycle.terminate(item)
            elif item.id in ids and item.status == "pending":
                self._lifecycle.cancel(item)


def _middleware(lago: Lago) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await lago.answer(request, handler)

    return middleware


def _adapted(lago: Lago, handler: ApiHandler, template: str = "") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        # As it was sent: aiohttp's own parts of a path no longer tell %2E from a dot.
        path = path_values(template, request.raw_path.partition("?")[0]) if template else request.match_info
        call = Call(path, tuple(request.query.items()), await _body(request))
        found = lago.handle(handler, call)
        if found is None:
            return web.Response(status=200)
        if isinstance(found, str):
            return web.Response(text=found, content_type="text/plain")
        return json_answer(found)

    return answer


async def _body(request: web.Request) -> object:
    raw = await request.read()
    if not raw:
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"{error.msg} at byte {error.pos}") from None


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return json_answer(refusal.body, refusal.status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return json_answer({"status": error.status, "error": error.reason}, error.status)


def _fault_answer(fault: LagoFault) -> web.Response:
    status = fault.status or 200
    if fault.body == "html":
        answer = web.Response(text="<html><body>Bad Gateway</body></html>", content_type="text/html", status=status)
    elif fault.body == "garbage":
        answer = web.Response(body=b'{"wallets": [{"lago_id": "', content_type="application/json", status=status)
    else:
        answer = json_answer({"status": status, "error": "injected fault"}, status)
    if fault.retry_after:
        answer.headers["Retry-After"] = fault.retry_after
    return answer


def _hang_up(request: web.Request) -> web.StreamResponse:
    """Cuts the connection without an answer; what is returned has nowhere to go."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
