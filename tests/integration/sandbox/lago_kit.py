"""A running Lago stand-in, and a client whose every answer is held against Lago's OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.lago.lago_wire import Json
from sidecar.sandbox.server import Server
from tests.integration.sandbox import lago_contract

API_KEY = "right-key"
HMAC_KEY = "right-hmac-key"


def unix(text: str) -> float:
    """UTC, as in ``2025-06-01 00:10``."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


#: Where the clock stands at first.
NOON = "2025-06-10 12:00"


def config(now: str = NOON, **more: Any) -> LagoConfig:
    stands = unix(now)
    return LagoConfig(api_key=API_KEY, hmac_key=HMAC_KEY, now=lambda: stands, **more)


@dataclass(slots=True)
class Client:
    """Talks to one stand-in. ``lago`` is its inside."""

    lago: Lago
    url: str
    session: aiohttp.ClientSession
    key: str = API_KEY

    async def call(self, method: str, path: str, body: object = None, *, checked: bool = True) -> tuple[int, Any]:
        """The status and the parsed answer. ``checked``: by the document, unless it is a control's."""
        prefix = "" if path.startswith("/sandbox") else "/api/v1"
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        raw = None if body is None else orjson.dumps(body)
        async with self.session.request(method, f"{self.url}{prefix}{path}", data=raw, headers=headers) as answer:
            received = await answer.read()
            is_json = answer.content_type == "application/json"
            found = orjson.loads(received) if received and is_json else received.decode() or None
            if checked and prefix and lago_contract.is_here():
                bare = path.split("?")[0]
                wrong = lago_contract.answer_errors(method, bare, answer.status, answer.content_type, found)
                assert not wrong, f"{method} {path}: {answer.status}: {wrong}"
            return answer.status, found

    async def get(self, path: str) -> Any:
        return await self._good("GET", path)

    async def post(self, path: str, body: object = None) -> Any:
        return await self._good("POST", path, body)

    async def put(self, path: str, body: object = None) -> Any:
        return await self._good("PUT", path, body)

    async def delete(self, path: str) -> Any:
        return await self._good("DELETE", path)

    async def _good(self, method: str, path: str, body: object = None) -> Any:
        status, found = await self.call(method, path, body)
        assert status == 200, f"{method} {path}: {status} {found}"
        return found

    async def refused(self, method: str, path: str, body: object = None, *, checked: bool = True) -> tuple[int, Any]:
        """The status and ``error_details`` or ``code`` of a refusal."""
        status, found = await self.call(method, path, body, checked=checked)
        assert status >= 400, f"{method} {path}: {status} {found}"
        return status, found.get("error_details", found.get("code"))

    def advance(self, when: str) -> None:
        self.lago.advance_to(unix(when))

    async def customer(self, external_id: str = "tpp", **more: object) -> Json:
        given = {"external_id": external_id, "currency": "EUR", **more}
        found: Json = (await self.post("/customers", {"customer": given}))["customer"]
        return found

    async def metric(self, code: str = "api_calls", **more: object) -> str:
        given = {"code": code, "name": code, "aggregation_type": "sum_agg", "field_name": "calls", **more}
        return str((await self.post("/billable_metrics", {"billable_metric": given}))["billable_metric"]["lago_id"])

    async def plan(self, code: str = "basic", charges: Sequence[Json] = (), **more: object) -> Json:
        given = {
            "code": code, "name": code, "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
            "pay_in_advance": False, "charges": list(charges), **more,
        }  # fmt: skip
        found: Json = (await self.post("/plans", {"plan": given}))["plan"]
        return found

    async def subscribe(self, plan: str = "basic", external_id: str = "sub", **more: object) -> Json:
        given = {"external_customer_id": "tpp", "plan_code": plan, "external_id": external_id, **more}
        found: Json = (await self.post("/subscriptions", {"subscription": given}))["subscription"]
        return found

    async def wallet(self, **more: object) -> Json:
        given = {"external_customer_id": "tpp", "rate_amount": "1", "currency": "EUR", **more}
        found: Json = (await self.post("/wallets", {"wallet": given}))["wallet"]
        return (await self.get(f"/wallets/{found['lago_id']}"))["wallet"]  # type: ignore[no-any-return]

    async def top_up(self, wallet: Json, **more: object) -> list[Json]:
        given = {"wallet_id": wallet["lago_id"], **more}
        made = await self.post("/wallet_transactions", {"wallet_transaction": given})
        return made["wallet_transactions"]  # type: ignore[no-any-return]

    async def use(self, calls: object, at: str, *, id: str = "", code: str = "api_calls", sub: str = "sub") -> None:
        event = {
            "transaction_id": id or f"{sub}-{code}-{at}", "code": code, "external_subscription_id": sub,
            "timestamp": unix(at), "properties": {"calls": calls},
        }  # fmt: skip
        await self.post("/events/batch", {"events": [event]})

    async def usage(self, sub: str = "sub") -> Json:
        found = await self.get(f"/customers/tpp/current_usage?external_subscription_id={sub}")
        return found["customer_usage"]  # type: ignore[no-any-return]

    async def invoices(self, query: str = "invoice_type=subscription") -> list[Any]:
        """In full, oldest first."""
        listed = (await self.get(f"/invoices?{query}"))["invoices"]
        return [(await self.get(f"/invoices/{item['lago_id']}"))["invoice"] for item in reversed(listed)]

    async def balance(self, wallet: Json) -> int:
        return int((await self.get(f"/wallets/{wallet['lago_id']}"))["wallet"]["balance_cents"])


@asynccontextmanager
async def running(given: LagoConfig | None = None) -> AsyncIterator[Client]:
    lago = Lago(given or config())
    timeout = aiohttp.ClientTimeout(total=20)
    async with Server(lago.app()) as server, aiohttp.ClientSession(timeout=timeout) as session:
        yield Client(lago, server.url, session)


@asynccontextmanager
async def metered(given: LagoConfig | None = None, *, price: str = "0.05", **plan: Any) -> AsyncIterator[Client]:
    """With a customer, a metric and the plan ``basic``, which has one charge at a price a call."""
    async with running(given) as client:
        await client.customer()
        await client.plan(charges=[standard(await client.metric(), price)], **plan)
        yield client


def standard(metric_id: str, amount: str, **more: object) -> Json:
    return {"billable_metric_id": metric_id, "charge_model": "standard", "properties": {"amount": amount}, **more}


def fees(invoice: Json) -> list[tuple[str, str, int]]:
    """Kind, units and cents of an invoice's fees; a plan that costs nothing has one of nothing, which is left out."""
    listed: Any = invoice["fees"]
    found = [(fee["item"]["type"], fee["units"], fee["amount_cents"]) for fee in listed]
    return [fee for fee in found if fee != ("subscription", "1.0", 0)]


@dataclass(slots=True)
class Receiver:
    """Takes webhooks. ``answers`` are the next statuses, then 200; ``at_once_most`` were open at once."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    first_takes_s: float = 0.0
    at_once_most: int = 0
    _at_once: int = 0

    @property
    def received(self) -> list[Json]:
        return [orjson.loads(body) for body in self.bodies]

    def types(self) -> list[str]:
        return [str(item["webhook_type"]) for item in self.received]

    def of_type(self, type: str) -> list[Any]:
        return [item[str(item["object_type"])] for item in self.received if item["webhook_type"] == type]

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        self._at_once += 1
        self.at_once_most = max(self.at_once_most, self._at_once)
        if self.first_takes_s and len(self.bodies) == 1:
            await asyncio.sleep(self.first_takes_s)
        self._at_once -= 1
        return web.Response(status=self.answers.pop(0) if self.answers else 200)


@asynccontextmanager
async def receiving(client: Client, **endpoint: object) -> AsyncIterator[Receiver]:
    """A receiver that the stand-in knows as a webhook endpoint."""
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/hooks", receiver.take)
    async with Server(app) as server:
        receiver.url = f"{server.url}/hooks"
        given = {"webhook_url": receiver.url, "signature_algo": "hmac", **endpoint}
        await client.post("/webhook_endpoints", {"webhook_endpoint": given})
        yield receiver
