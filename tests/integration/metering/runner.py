"""A publisher as a process of its own: ``python -m …runner HOST PORT PARTITIONS SETTINGS``, the last as JSON."""

from __future__ import annotations

import asyncio
import signal
import sys

from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings


async def main(host: str, port: str, partitions: str, how: str) -> None:
    async with Redis(host=host, port=int(port)) as client:
        keys = Keys(partitions=int(partitions))
        publisher = Publisher(client, keys, MeteringSettings.model_validate_json(how))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, publisher.stop)
        await publisher.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
