"""The stand-in of Lago behind the real client of Lago, without a socket: on the simulation's clock, and failing by its
seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

import httpx
from aiohttp import StreamReader
from aiohttp.test_utils import make_mocked_request

from sidecar.billing.lago import transport
from sidecar.billing.settings import LagoSettings
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from tests.simulation.loop import SimulatedLoop

API_KEY: Final = "simulated-key"
ACCOUNT: Final = "funded"
PRICE: Final = "0.01"
SETTINGS: Final = LagoSettings.model_validate(
    {
        "url": "http://lago", "api_key": API_KEY, "timeout_ms": 2_000, "requests_per_second": 1_000,
        "webhooks": {"hmac_key": "simulated-hmac-key"},
        "reconcile": {"interval_s": 3, "full_interval_s": 10, "lease_ttl_ms": 1_500, "poll_ms": 200},
    }
)  # fmt: skip


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class SimulatedLago(httpx.AsyncBaseTransport):
    """``failing``: share of requests that fail; of these one half was done all the same. ``credits``: granted to the
    one customer's wallet so far, each worth 1."""

    def __init__(self, loop: SimulatedLoop, seed: int) -> None:
        self.lago = Lago(LagoConfig(api_key=API_KEY, now=loop.wall_s, seed=seed, webhook_retry_waits_s=()))
        self.failing = 0.0
        self.credits = 0
        self._random = random.Random(seed)
        self._app: Any = self.lago.app()
        self._app.freeze()

    def __repr__(self) -> str:
        return f"<SimulatedLago credits={self.credits} failing={self.failing}>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(self._random.uniform(0.002, 0.05))
        fails = self._random.random() < self.failing
        if fails and self._random.random() < 0.3:
            await asyncio.sleep(10)  # longer than anybody waits
        if fails and self._random.random() < 0.5:
            raise httpx.ConnectError("refused", request=request)
        status, body = await self._do(
            request.method, request.url.raw_path.decode(), await request.aread(), request.headers["authorization"]
        )
        if fails and self._random.random() < 0.5:
            raise httpx.ReadError("reset", request=request)
        if fails:
            status, body = 503, b""
        return httpx.Response(status, stream=_Body(body), request=request)

    async def _do(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, bytes]:
        payload = StreamReader(mock.Mock(_reading_paused=False), 2**20, loop=asyncio.get_running_loop())
        payload.feed_data(body)
        payload.feed_eof()
        headers = {"Authorization": authorization, "Content-Type": "application/json", "Host": "lago"}
        answer = await self._app._handle(
            make_mocked_request(method, path, headers=headers, payload=payload, app=self._app)
        )
        return answer.status, answer.body or b""

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As an operator does it: it never fails."""
        content = b"" if body is None else httpx.Request(method, "http://lago", json=body).content
        status, answer = await self._do(method, f"/api/v1{path}", content, f"Bearer {API_KEY}")
        assert status < 300, (method, path, status, answer)
        return httpx.Response(200, content=answer).json()

    async def seed_customer(self, credits: int) -> None:
        """A plan, a customer with a wallet, and its subscription."""
        metric = await self.ask(
            "POST", "/billable_metrics",
            {"billable_metric": {"code": "api_calls", "name": "API calls", "aggregation_type": "sum_agg",
                                 "field_name": "calls"}},
        )  # fmt: skip
        charge = {"billable_metric_id": metric["billable_metric"]["lago_id"], "charge_model": "standard",
                  "properties": {"amount": PRICE}}  # fmt: skip
        await self.ask("POST", "/plans", {"plan": {
            "code": "pro", "name": "pro", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
            "pay_in_advance": False, "charges": [charge]}})  # fmt: skip
        await self.ask("POST", "/customers", {"customer": {"external_id": ACCOUNT, "currency": "EUR"}})
        await self.ask("POST", "/wallets", {"wallet": {
            "external_customer_id": ACCOUNT, "name": "main", "currency": "EUR", "rate_amount": "1",
            "paid_credits": "0", "granted_credits": str(credits)}})  # fmt: skip
        await self.ask("POST", "/subscriptions", {"subscription": {
            "external_customer_id": ACCOUNT, "external_id": "funded-sub", "plan_code": "pro",
            "billing_time": "calendar"}})  # fmt: skip
        self.credits += credits

    async def top_up(self, credits: int) -> None:
        (wallet,) = (await self.ask("GET", f"/wallets?external_customer_id={ACCOUNT}"))["wallets"]
        await self.ask("POST", "/wallet_transactions", {"wallet_transaction": {
            "wallet_id": wallet["lago_id"], "granted_credits": str(credits)}})  # fmt: skip
        self.credits += credits

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Clients of Lago that are opened meanwhile ask this one."""
        opened = partial(httpx.AsyncClient, transport=self)
        with (
            mock.patch.object(transport.httpx, "AsyncClient", opened),
            mock.patch.object(transport, "tls_context", return_value=True),
        ):
            yield
