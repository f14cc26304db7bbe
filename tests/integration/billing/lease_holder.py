"""A process that wants the lease ``reconciler``: ``python -m …lease_holder HOST PORT HOLDER TTL_MS``.

While it leads it appends its token to the list ``work``, every few milliseconds, and says what it sees on standard
output: ``lead TOKEN``, ``lost``, ``end``.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from redis.asyncio import Redis

from sidecar.app.logs import configure
from sidecar.ledger.keys import Keys
from sidecar.valkey.lease import Lease, lead


async def main(host: str, port: str, holder: str, ttl_ms: str) -> None:
    async with Redis(host=host, port=int(port), socket_timeout=1, socket_connect_timeout=1) as client:
        lease = Lease(client, Keys().lease("reconciler"), holder, int(ttl_ms))

        async def work(token: int) -> None:
            print(f"lead {token}", flush=True)
            try:
                while True:
                    await client.rpush("work", f"{holder} {token}")
                    await asyncio.sleep(0.005)
            finally:
                print("lost", flush=True)

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await lead(lease, work, stop)
        print("end", flush=True)


if __name__ == "__main__":
    configure("warning", "json")
    asyncio.run(main(*sys.argv[1:]))
