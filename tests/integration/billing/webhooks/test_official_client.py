"""Lago's own Python client as the one who fetches the key."""

from __future__ import annotations

import asyncio
import base64

import pytest
from aiohttp import web
from redis.asyncio import Redis

from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks.receiver import WebhookReceiver
from sidecar.ledger.keys import Keys
from sidecar.sandbox.server import Server
from tests.integration.billing.webhooks.kit import body_of, headers_of, sending, serving
from tests.unit.billing.webhooks.kit import ISSUER, SigningKey

lago_python_client = pytest.importorskip("lago_python_client")


async def test_the_key_that_lago_s_client_reads_verifies_lago_s_webhooks(client: Redis, keys: Keys) -> None:
    signing = SigningKey()

    async def json_public_key(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer api-key"
        # lago-api: Base64.encode64, which has newlines.
        return web.json_response({"webhook": {"public_key": base64.encodebytes(signing.pem).decode()}})

    app = web.Application()
    app.router.add_get("/api/v1/webhooks/json_public_key", json_public_key)
    async with Server(app) as lago_server:
        official = lago_python_client.Client(api_key="api-key", api_url=lago_server.url)

        async def fetch() -> bytes:
            key: bytes = await asyncio.to_thread(official.webhooks.public_key)
            return key

        receiver = WebhookReceiver(
            WebhookSettings(jwt=True), ReloadRequests(client, keys), fetch_public_key=fetch, lago_url=ISSUER
        )
        async with serving(receiver) as port, sending(port) as lago:
            body = body_of()
            good = headers_of(body, signature=signing.sign(body), algorithm="jwt")
            bad = headers_of(body, signature=SigningKey().sign(body), algorithm="jwt")
            assert [(await lago.send(body, headers)).status for headers in (good, bad)] == [200, 401]
