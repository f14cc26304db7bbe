"""A receiver as a process of its own: ``python -m …runner HOST PORT SETTINGS``, the last as JSON.

Prints its port when it listens. Nobody handles the reload requests: that is for whoever comes after.
"""

from __future__ import annotations

import asyncio
import sys

from redis.asyncio import Redis

from sidecar.app.logs import configure
from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks.receiver import WebhookReceiver
from sidecar.ledger.keys import Keys
from tests.integration.billing.webhooks.kit import serving


async def no_key() -> bytes:
    raise OSError("there is no Lago here")


async def main(host: str, port: str, how: str) -> None:
    async with Redis(host=host, port=int(port)) as client:
        settings = WebhookSettings.model_validate_json(how)
        receiver = WebhookReceiver(settings, ReloadRequests(client, Keys()), fetch_public_key=no_key)
        async with serving(receiver) as listening_port:
            print(listening_port, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    configure("error", "json")
    asyncio.run(main(*sys.argv[1:]))
