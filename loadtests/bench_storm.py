"""Whether webhooks slow the gateway: ``python -m loadtests.bench_storm``.

One ``sidecar demo`` (everything in one process, the worst case), one client with one connection that calls all the
time, and 5,000 signed webhooks for one account in between. Prints the calls' latency without and with the storm, in
turns, and how often Lago was read.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

PATH = "/open-banking/v3.1/aisp/accounts"
AT_ONCE = 32


def calls(url: str, key: str, until: threading.Event, latencies_ms: list[float]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    while not until.is_set():
        began = time.perf_counter()
        connection.request("GET", PATH, headers={"X-API-Key": key})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        latencies_ms.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)


def webhook(number: int) -> bytes:
    wallet = {"lago_id": f"w-{number}", "external_customer_id": "tpp-prepaid", "balance_cents": number}
    return orjson.dumps({"webhook_type": "wallet.updated", "object_type": "wallet", "wallet": wallet})


async def storm(ready: dict[str, Any], webhooks: int, first: int) -> float:
    """Seconds that it took."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def send(session: aiohttp.ClientSession, number: int) -> None:
        body = webhook(number)
        mac = hmac.new(ready["webhook_hmac_key"].encode(), body, hashlib.sha256).digest()
        headers = {"X-Lago-Signature": base64.b64encode(mac).decode(), "X-Lago-Signature-Algorithm": "hmac",
                   "X-Lago-Unique-Key": f"k-{number}", "Content-Type": "application/json"}  # fmt: skip
        async with slots:
            for _ in range(100):
                url = f"{ready['admin']}/webhooks/lago"
                async with session.post(url, data=body, headers=headers) as answer:
                    if answer.status == 200:
                        return
                    assert answer.status == 429, answer.status
                await asyncio.sleep(0.1)

    began = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(send(session, first + number) for number in range(webhooks)))
    return time.perf_counter() - began


def reads(ready: dict[str, Any]) -> int:
    parts = urlsplit(ready["lago"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("GET", "/sandbox/stats")
    found = json.loads(connection.getresponse().read())
    return sum(found["requests"].values())


def shown(latencies_ms: list[float]) -> str:
    ordered = sorted(latencies_ms)
    median, tail = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return f"p50 {median:.2f} ms, p99 {tail:.2f} ms ({len(ordered)} calls)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webhooks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo", "--proxy-port", "0", "--admin-port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        key = next(each["api_key"] for each in ready["accounts"] if each["id"] == "tpp-postpaid")
        for number in range(arguments.rounds):
            quiet: list[float] = []
            stormy: list[float] = []
            for latencies, storms in ((quiet, False), (stormy, True)):
                until = threading.Event()
                caller = threading.Thread(target=calls, args=(ready["proxy"], key, until, latencies))
                before = reads(ready)
                caller.start()
                if storms:
                    seconds = asyncio.run(storm(ready, arguments.webhooks, number * arguments.webhooks))
                else:
                    time.sleep(10)
                until.set()
                caller.join()
                if storms:
                    print(f"storm of {arguments.webhooks} in {seconds:.1f} s: {shown(latencies)};"
                          f" {reads(ready) - before} requests to Lago")  # fmt: skip
                else:
                    print(f"quiet: {shown(latencies)}; {reads(ready) - before} requests to Lago in 10 s")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
