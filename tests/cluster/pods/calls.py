"""Calls an API for some seconds, over new and over kept connections, and prints what became of each request.

``calls.py HOST:PORT KEY SECONDS``: a line of JSON, ``{"200": 1234, "trouble": {"connect: …": 1}}``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

PATH = "/open-banking/v3.1/aisp/accounts"
TIMEOUT_S = 10.0
PAUSE_S = 0.05
KEPT_FOR = 20
CLIENTS = 8


async def main(target: str, key: str, seconds: float) -> None:
    host, _, port = target.rpartition(":")
    request = f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n\r\n".encode()
    statuses: Counter[str] = Counter()
    trouble: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def over_one_connection(requests: int) -> None:
        step = "connect"
        writer = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, int(port))
            for number in range(requests):
                step = f"request {number}"
                writer.write(request)
                async with asyncio.timeout(TIMEOUT_S):
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                    await reader.readexactly(int(fields[b"content-length"]))
                statuses[head.split()[1].decode()] += 1
                if fields.get(b"connection") == b"close" or time.monotonic() > end:
                    break
                await asyncio.sleep(PAUSE_S)
        except (OSError, TimeoutError, EOFError) as error:
            trouble[f"{step}: {error!r}"[:200]] += 1
        finally:
            if writer is not None:
                writer.close()

    async def client(requests: int) -> None:
        while time.monotonic() < end:
            await over_one_connection(requests)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client(1 if number % 2 else KEPT_FOR) for number in range(CLIENTS)))
    print(json.dumps({**statuses, "trouble": trouble}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
