"""Lago's REST API, as far as the gateway needs it (``/api/v1``; lago-api ``app/controllers/api/v1/``).

One method per request, which is what makes this module long. Whatever is not there is None or empty, everything else
that goes wrong is a ``LagoError``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sidecar.basics.clock import Clock, SystemClock
from sidecar.billing.lago import parsing, parsing_invoices
from sidecar.billing.lago.answered_ids import all_of, check_updated, same
from sidecar.billing.lago.credit_requests import CreditRequests
from sidecar.billing.lago.errors import LagoError, LagoMalformed, LagoRejected, LagoUnavailable
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.metrics import LagoMetrics
from sidecar.billing.lago.models import (
    BillableMetric,
    CurrentUsage,
    Customer,
    Event,
    FixedCharge,
    Invoice,
    Page,
    Plan,
    Subscription,
    Tax,
    Wallet,
    WalletTransaction,
    WebhookEndpoint,
)
from sidecar.billing.lago.object_requests import PER_PAGE
from sidecar.billing.lago.object_requests import in_field as _in
from sidecar.billing.lago.transport import Query, Transport, segment
from sidecar.billing.lago.versions import check_invoice
from sidecar.billing.settings import LagoSettings

T = TypeVar("T")

PAGES_MAX: Final = 1_000
LIST_ATTEMPTS_MAX: Final = 4
"""How often a list of several pages is read that changes while it is read."""


class LagoClient(CreditRequests):
    """Reads and writes Lago; an async context manager that holds the connections. Many tasks may use it at once.

    Raises:
        LagoSetupError: on entering: ``url`` is not set, a file cannot be read or is not what it should be.
    """

    def __init__(self, settings: LagoSettings, *, clock: Clock | None = None, random: Random | None = None) -> None:
        self.metrics = LagoMetrics()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - spreads waits, keeps no secret

    def __repr__(self) -> str:
        return f"LagoClient({self._settings.url}, {'open' if self._transport else 'closed'})"

    async def __aenter__(self) -> Self:
        self._transport = Transport(self._settings, self._clock, self._random, self.metrics)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    # Customers and their money

    async def customer(self, external_id: str) -> Customer | None:
        """A customer with its taxes."""
        return await self._find(
            "/customers/{id}", external_id, "customer", parsing.customer, id_of=lambda each: each.external_id
        )

    async def customers(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Customer]:
        return await self._page("/customers", "customers", parsing.customer, page, per_page)

    async def wallets(self, customer: str) -> tuple[Wallet, ...]:
        """All of a customer's, terminated ones too; empty for an unknown customer."""
        query = [("external_customer_id", customer)]
        absent = ("customer_not_found",)
        found = await self._all("/wallets", "wallets", parsing.wallet, lambda each: each.lago_id, query, absent=absent)
        return all_of("GET /wallets", customer, found)

    async def wallets_page(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Wallet]:
        """A page of the wallets of all customers."""
        return await self._page("/wallets", "wallets", parsing.wallet, page, per_page)

    async def wallet(self, lago_id: str) -> Wallet | None:
        return await self._find("/wallets/{id}", lago_id, "wallet", parsing.wallet, id_of=lambda each: each.lago_id)

    async def wallet_transactions(
        self,
        wallet_id: str,
        *,
        status: str | None = None,
        transaction_type: str | None = None,
        transaction_status: str | None = None,
    ) -> tuple[WalletTransaction, ...]:
        """All of a wallet's, newest first; empty for an unknown wallet."""
        template = "/wallets/{id}/wallet_transactions"
        filters = {"status": status, "transaction_type": transaction_type, "transaction_status": transaction_status}
        return await self._all(
            template,
            "wallet_transactions",
            same(f"GET {template}", parsing.wallet_transaction, lambda each: each.wallet_id, wallet_id),
            lambda each: each.lago_id,
            [(name, value) for name, value in filters.items() if value is not None],
            of=wallet_id,
            absent=("wallet_not_found",),
        )

    async def taxes(self) -> tuple[Tax, ...]:
        """All of the organisation's."""
        return await self._all("/taxes", "taxes", parsing.tax, lambda each: each.code)

    # Subscriptions and what they cost

    async def subscriptions(
        self, customer: str, *, statuses: Sequence[str] = ("active", "pending", "terminated")
    ) -> tuple[Subscription, ...]:
        """A customer's, without plans; empty for an unknown customer."""
        query = [("external_customer_id", customer), *_listed("status", statuses)]
        found = await self._all(
            "/subscriptions", "subscriptions", parsing.subscription, lambda each: each.lago_id, query
        )
        return all_of("GET /subscriptions", customer, found)

    async def subscriptions_page(
        self,
        page: int = 1,
        statuses: Sequence[str] = ("active",),
        plan_code: str | None = None,
        per_page: int = PER_PAGE,
    ) -> Page[Subscription]:
        """A page of the subscriptions of all customers, or of one plan."""
        query = [*_listed("status", statuses), *([("plan_code", plan_code)] if plan_code is not None else [])]
        return await self._page("/subscriptions", "subscriptions", parsing.subscription, page, per_page, query)

    async def subscription(self, external_id: str, *, status: str | None = None) -> Subscription | None:
        """A subscription with its effective plan; without ``status`` the active one."""
        query = [("status", status)] if status is not None else []
        return await self._find(
            "/subscriptions/{id}",
            external_id,
            "subscription",
            parsing.subscription,
            query,
            id_of=lambda each: each.external_id,
        )

    async def fixed_charges(self, external_subscription_id: str) -> tuple[FixedCharge, ...]:
        """Those of an active subscription, which its plan lacks in other answers; none in versions without them."""
        return await self._all(
            "/subscriptions/{id}/fixed_charges",
            "fixed_charges",
            parsing.fixed_charge,
            lambda each: each.lago_id,
            of=external_subscription_id,
            absent=("subscription_not_found", "resource_not_found"),
        )

    async def plan(self, code: str) -> Plan | None:
        """A plan, without what subscriptions override."""
        return await self._find("/plans/{id}", code, "plan", parsing.plan, id_of=lambda each: each.code)

    async def plans_page(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Plan]:
        return await self._page("/plans", "plans", parsing.plan, page, per_page)

    async def metric(self, code: str) -> BillableMetric | None:
        return await self._find(
            "/billable_metrics/{id}", code, "billable_metric", parsing.metric, id_of=lambda each: each.code
        )

    async def billable_metrics(self) -> tuple[BillableMetric, ...]:
        return await self._all("/billable_metrics", "billable_metrics", parsing.metric, lambda each: each.lago_id)

    async def current_usage(
        self, customer: str, external_subscription_id: str, *, apply_taxes: bool = True
    ) -> CurrentUsage | None:
        """The usage ingested in the current period; None without such a customer or an active subscription.

        Lago answers 500 where a volume charge that begins at 1 has no usage (lago-api
        ``app/services/charge_models/volume_service.rb``).
        """
        try:
            return await self._find(
                "/customers/{id}/current_usage",
                customer,
                "customer_usage",
                parsing_invoices.current_usage,
                [
                    ("external_subscription_id", external_subscription_id),
                    ("apply_taxes", "true" if apply_taxes else "false"),
                ],
                absent=("customer_not_found", "subscription_not_found", "no_active_subscription"),
            )
        except LagoRejected as error:
            # The word for a customer that there is not, and for a path that there is not.
            if error.code != "resource_not_found" or await self._may_exist(customer):
                raise
            return None

    async def _may_exist(self, customer: str) -> bool:
        try:
            return await self.customer(customer) is not None
        except LagoError:
            return True

    async def invoices(
        self, customer: str, *, statuses: Sequence[str] = (), type: str | None = "subscription", limit: int = PER_PAGE
    ) -> tuple[Invoice, ...]:
        """A customer's newest by date of issue, at most ``limit``, without periods and fees. ``type`` None: any."""
        assert limit > 0, "a limit of something"
        query = [("external_customer_id", customer), *_listed("statuses", statuses)]
        if type is not None:
            query.append(("invoice_type", type))
        found: dict[str, Invoice] = {}
        page: int | None = 1
        per_page = min(limit, PER_PAGE)
        while page is not None and len(found) < limit and page <= PAGES_MAX:
            answer = await self._page("/invoices", "invoices", parsing_invoices.invoice, page, per_page, query)
            # One made meanwhile moves the others back, so that they come twice.
            found |= {each.lago_id: each for each in answer.items}
            page = answer.next_page if answer.items else None
        return all_of("GET /invoices", customer, tuple(found.values())[:limit])

    async def invoice(self, lago_id: str) -> Invoice | None:
        """An invoice with its periods and fees. Raises ``LagoTooOld`` for one of usage that has no periods."""
        parse = _then(parsing_invoices.invoice, lambda found: check_invoice("GET /invoices/{id}", found))
        return await self._find("/invoices/{id}", lago_id, "invoice", parse, id_of=lambda each: each.lago_id)

    async def newest_invoice(self) -> Invoice | None:
        """The newest invoice of a subscription of any customer, as :meth:`invoice`."""
        query = [("invoice_type", "subscription")]
        found = await self._page("/invoices", "invoices", parsing_invoices.invoice, 1, 1, query)
        return await self.invoice(found.items[0].lago_id) if found.items else None

    # Events

    async def send_events(self, events: Sequence[Event]) -> None:
        """Send usage, all or nothing; at most 100 events by Lago's default.

        It is safe to send events again: Lago knows them by their ids.

        Raises:
            LagoRejected: none was taken; ``events`` says why, by position. ``value_already_exist`` of a
                ``transaction_id`` is also the answer if an earlier attempt got through and its answer was lost.
        """

        def check(answer: Fields) -> None:
            taken = len(answer.listed("events"))
            if taken != len(events):
                answer.refuse("events", f"a list of {len(events)} events", f"one of {taken}")

        await self._post(
            "/events/batch", {"events": [parsing.event_body(each) for each in events]}, check, repeatable=True
        )

    async def send_event(self, event: Event) -> None:
        """Send one event. Raises as ``send_events``, with the reasons in ``codes``."""
        await self._post(
            "/events", {"event": parsing.event_body(event)}, lambda answer: answer.row("event"), repeatable=True
        )

    async def event(self, transaction_id: str) -> Event | None:
        return await self._find(
            "/events/{id}", transaction_id, "event", parsing.event, id_of=lambda each: each.transaction_id
        )

    # The installation

    async def version(self) -> str:
        """The version as Lago names it, such as ``v1.51.0``; ``versions`` can tell what it means."""
        return await self._open.health(lambda answer: answer.text("version"))

    async def public_key(self) -> bytes:
        """The key of Lago's ``jwt`` signatures, in PEM."""
        return await self._get("/webhooks/json_public_key", parsing.public_key)

    async def webhook_endpoints(self) -> tuple[WebhookEndpoint, ...]:
        return await self._all(
            "/webhook_endpoints", "webhook_endpoints", parsing.webhook_endpoint, lambda each: each.lago_id
        )

    # Writing. Bodies are as Lago documents them, without the outermost object. Decimals become whole numbers or texts.
    # A request that Lago would do twice is only sent again if the first one certainly had no effect.

    async def create(self, path: str, body: Mapping[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        """POST ``body`` as it is; answer the JSON object that came back. For what has no method of its own."""
        return await self._post(path, body, lambda answer: answer.values, repeatable=repeatable)

    async def update(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PUT the same way. Ids in ``path`` are made fit for it with ``transport.segment``."""
        endpoint = f"PUT /{path.split('/')[1]}/{{id}}"

        def parse(answer: Fields) -> dict[str, Any]:
            check_updated(endpoint, path, body, answer.values)
            return answer.values

        return await self._open.request(endpoint, path, parse, body=body)

    async def delete(self, path: str, query: Query = ()) -> bool:
        """DELETE the same way; what that means is Lago's (a wallet is terminated). False: Lago does not know it."""
        endpoint = f"DELETE /{path.split('/')[1]}/{{id}}"
        try:
            await self._open.request(endpoint, path, lambda answer: answer.values, query=query)
        except LagoRejected as error:
            if error.status == 404 and error.code.endswith("_not_found"):
                return False
            raise
        return True

    async def create_customer(self, customer: Mapping[str, Any]) -> Customer:
        """Create a customer, or change the one with this ``external_id``."""
        return await self._post(
            "/customers", {"customer": customer}, _in("customer", parsing.customer), repeatable=True
        )

    async def create_wallet(self, wallet: Mapping[str, Any]) -> Wallet:
        """Create a wallet. Credits granted with it may not be there yet in the answer."""
        return await self._post("/wallets", {"wallet": wallet}, _in("wallet", parsing.wallet))

    async def top_up(self, top_up: Mapping[str, Any]) -> tuple[WalletTransaction, ...]:
        """Put credits into a wallet, or void some. Lago has no idempotency here: a call that fails may have worked."""
        return await self._post(
            "/wallet_transactions",
            {"wallet_transaction": top_up},
            lambda answer: tuple(map(parsing.wallet_transaction, answer.listed("wallet_transactions"))),
        )

    async def create_subscription(self, subscription: Mapping[str, Any]) -> Subscription:
        """Subscribe a customer, or change the plan of the subscription with this ``external_id``."""
        return await self._post(
            "/subscriptions", {"subscription": subscription}, _in("subscription", parsing.subscription)
        )

    async def create_metric(self, metric: Mapping[str, Any]) -> BillableMetric:
        return await self._post(
            "/billable_metrics", {"billable_metric": metric}, _in("billable_metric", parsing.metric)
        )

    async def update_metric(self, code: str, metric: Mapping[str, Any]) -> BillableMetric:
        return await self._put(
            "/billable_metrics/{id}", code, {"billable_metric": metric}, _in("billable_metric", parsing.metric)
        )

    async def create_plan(self, plan: Mapping[str, Any]) -> Plan:
        return await self._post("/plans", {"plan": plan}, _in("plan", parsing.plan))

    async def update_plan(self, code: str, plan: Mapping[str, Any]) -> Plan:
        """Change a plan. If it has ``charges``, those that are not among them are removed."""
        return await self._put("/plans/{id}", code, {"plan": plan}, _in("plan", parsing.plan))

    async def create_tax(self, tax: Mapping[str, Any]) -> Tax:
        return await self._post("/taxes", {"tax": tax}, _in("tax", parsing.tax))

    async def create_webhook_endpoint(self, endpoint: Mapping[str, Any]) -> WebhookEndpoint:
        body = {"webhook_endpoint": endpoint}
        return await self._post("/webhook_endpoints", body, _in("webhook_endpoint", parsing.webhook_endpoint))

    async def update_webhook_endpoint(self, lago_id: str, endpoint: Mapping[str, Any]) -> WebhookEndpoint:
        body = {"webhook_endpoint": endpoint}
        parse = _in("webhook_endpoint", parsing.webhook_endpoint)
        return await self._put("/webhook_endpoints/{id}", lago_id, body, parse)

    # Whole lists

    async def _all(
        self,
        template: str,
        name: str,
        parse: Callable[[Fields], T],
        id_of: Callable[[T], str],
        query: Query = (),
        *,
        of: str | None = None,
        absent: tuple[str, ...] = (),
    ) -> tuple[T, ...]:
        """A whole list. Pages are cut by position, so what comes or goes between two of them may hide something: the
        list is read again until as many were seen as are said to be there.
        """
        part = "" if of is None else segment(of)
        if part is None:
            return ()
        for _ in range(LIST_ATTEMPTS_MAX):
            found: dict[str, T] = {}
            page: int | None = 1
            last: Page[T] | None = None
            while page is not None:
                if page > PAGES_MAX:
                    raise LagoMalformed(f"GET {template}: more than {PAGES_MAX} pages")
                try:
                    last = await self._page(template, name, parse, page, query=query, of=part)
                except LagoRejected as error:
                    if error.code in absent:
                        return ()
                    raise
                found |= {id_of(each): each for each in last.items}
                page = last.next_page
            assert last is not None
            if len(found) == last.total_count:
                return tuple(found.values())
        raise LagoUnavailable(f"GET {template}: the list keeps changing while it is read", kind="malformed")


def _then(parse: Callable[[Fields], T], check: Callable[[T], T]) -> Callable[[Fields], T]:
    return lambda row: check(parse(row))


def _listed(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{name}[]", value) for value in values]
