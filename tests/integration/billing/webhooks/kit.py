"""A receiver on a real socket, and Lago's side of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from sidecar.billing.webhooks.receiver import WebhookReceiver
from tests.unit.billing.webhooks.kit import hmac_signature

PATH = "/webhooks/lago"


def body_of(type_: str = "wallet.updated", account: str = "tpp-1", **more: Any) -> bytes:
    content = {"lago_id": "w1", "external_customer_id": account, "balance_cents": 9000, **more}
    return json.dumps(
        {"webhook_type": type_, "object_type": "wallet", "organization_id": "o1", "wallet": content}
    ).encode()


def headers_of(body: bytes, unique_key: str | None = "k1", **changes: str | None) -> dict[str, str]:
    """As Lago sends them; ``changes`` replace fields by the last word of their names, None leaves one out."""
    fields = {"signature": hmac_signature(body), "algorithm": "hmac", "key": unique_key, **changes}
    names = {"signature": "X-Lago-Signature", "algorithm": "X-Lago-Signature-Algorithm", "key": "X-Lago-Unique-Key"}
    found = {names[short]: value for short, value in fields.items() if value is not None}
    return {"Content-Type": "application/json", **found}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        return str(problem["detail"])


class Lago:
    """Sends webhooks to one address."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def send(self, body: bytes, headers: dict[str, str] | None = None, **options: Any) -> Answer:
        given = headers_of(body) if headers is None else headers
        async with self.session.post(self.url, data=body, headers=given, **options) as response:
            return Answer(response.status, dict(response.headers), await response.read())


@asynccontextmanager
async def serving(receiver: WebhookReceiver) -> AsyncIterator[int]:
    """The receiver as the admin server mounts it; the port."""
    app = web.Application(client_max_size=65_536)
    app.router.add_post(PATH, receiver.handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, max_field_size=receiver.field_bytes_max)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await receiver.close()
        await runner.cleanup()


@asynccontextmanager
async def sending(port: int, connections: int = 100) -> AsyncIterator[Lago]:
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        yield Lago(session, f"http://127.0.0.1:{port}{PATH}")
