"""Lago on port 3000 and OpenMeter on port 3001, as stand-ins."""

from __future__ import annotations

import asyncio
import os
import signal

from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server


async def main() -> None:
    lago = Lago(LagoConfig(api_key=os.environ["LAGO_API_KEY"], hmac_key=os.environ["HMAC_KEY"], auto_bill=True))
    openmeter = OpenMeter(OpenMeterConfig(meters=()))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Server(lago.app(), host="0.0.0.0", port=3000), Server(openmeter.app(), host="0.0.0.0", port=3001):
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
