"""A closed-loop HTTP client: so many connections, each with one request under way.

Prints ``began`` when its warm-up is over, ``ended`` when the time is, then what it measured in between as JSON, so that
whoever reads it can take other readings at the same two moments.

``python -m loadtests.client PORT PATH CONNECTIONS SECONDS [NAME:VALUE ...]``
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array

import uvloop

WARM_UP_S = 0.5


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last has come whole (Content-Length is the same for all)."""

    def __init__(self, request: bytes, latencies: array[float], began: float, until: float) -> None:
        self.request = request
        self.latencies = latencies
        self.began, self.until = began, until
        self.size = 0
        self.received = 0
        self.sent_at = 0.0
        self.failed = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.received = 0
        self.size = 0
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.received:
            if not data.startswith(b"HTTP/1.1 200"):
                self.failed += 1
            end = data.index(b"\r\n\r\n") + 4
            at = data.lower().index(b"content-length:") + 15
            self.size = end + int(data[at : data.index(b"\r\n", at)])
        self.received += len(data)
        if self.received < self.size:
            return
        now = time.perf_counter()
        if self.began < now <= self.until:
            self.latencies.append(now - self.sent_at)
        if now >= self.until:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed in the middle"))


async def main(port: int, path: str, connections: int, seconds: float, fields: list[str]) -> None:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "User-Agent: loadtest", "Accept: */*", *fields]
    request = "\r\n".join([*lines, "", ""]).encode()
    latencies: array[float] = array("d")
    loop = asyncio.get_running_loop()
    began = time.perf_counter() + WARM_UP_S
    made = [
        (
            await loop.create_connection(
                lambda: Connection(request, latencies, began, began + seconds), "127.0.0.1", port
            )
        )[1]
        for _ in range(connections)
    ]
    loop.call_later(began - time.perf_counter(), print, "began")
    loop.call_later(began + seconds - time.perf_counter(), print, "ended")
    await asyncio.gather(*(connection.done for connection in made))
    ordered = sorted(latencies)
    print(json.dumps({
        "requests": len(ordered),
        "failed": sum(connection.failed for connection in made),
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }))  # fmt: skip


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]))
