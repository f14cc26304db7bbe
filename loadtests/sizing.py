"""What a gateway and Valkey use at a given rate: ``python -m loadtests.sizing [--rates 100 1000 …] [--seconds 20]``.

Requests come at a steady rate from another process, spread over 64 kept-alive connections and 100 accounts. At low
rates a request costs more than under full load, since fewer share a call to Valkey; so this is what to size by, not the
comparison's cost at full load.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from loadtests.kit import rig
from loadtests.kit.processes import RigError, cpu_s, resident_mb

CONNECTIONS = 64
ACCOUNTS = 100
KEY_FORM = "key-for-the-sizing-%04d"
ROUNDS = 3
LATE_SHARE_MAX = 0.05


async def drive(port: int, rate: int, seconds: float) -> tuple[int, float]:
    """Sends ``rate`` requests a second for so long. Returns how many were answered with 200, and the median in ms."""
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    requests = [
        f"GET {rig.CHARGED} HTTP/1.1\r\nHost: api\r\nX-API-Key: {KEY_FORM % number}\r\n\r\n".encode()
        for number in range(ACCOUNTS)
    ]
    begin = time.monotonic() + 0.2
    took: list[float] = []

    async def client(number: int) -> int:
        reader, writer = pairs[number]
        answered = 0
        for turn in range(number, int(rate * seconds), CONNECTIONS):
            await asyncio.sleep(max(0.0, begin + turn / rate - time.monotonic()))
            sent = time.monotonic()
            writer.write(requests[turn % ACCOUNTS])
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))
            took.append(time.monotonic() - sent)
            answered += head.startswith(b"HTTP/1.1 200")
        writer.close()
        return answered

    answered = sum(await asyncio.gather(*(client(number) for number in range(CONNECTIONS))))
    late = time.monotonic() - begin - seconds
    if late > seconds * LATE_SHARE_MAX:
        raise RigError(f"{rate} requests a second could not be sent: {late:.1f} s late")
    return answered, statistics.median(took) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.sizing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", type=int, nargs="+", default=[10, 100, 500, 1000, 2000], metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--drive", type=int, nargs=2, metavar=("PORT", "RATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        port, rate = arguments.drive
        print(*asyncio.run(drive(port, rate, arguments.seconds)))
        return
    try:
        measure(arguments.rates, arguments.seconds)
    except RigError as error:
        sys.exit(f"error: {error}")


def measure(rates: list[int], seconds: float) -> None:
    """Prints a row for each rate: medians of the rounds."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sizing-")))
        valkey = stack.enter_context(rig.valkey(directory / "valkey"))
        config = rig.gateway_config(directory / "gateway.yaml", stack.enter_context(rig.upstream()), valkey.url)
        gateway = stack.enter_context(rig.gateway(config))
        accounts = [
            {
                "id": f"tpp-{number}", "mode": "prepaid", "currency": "GBP", "funds": "1000000", "prices": rig.PRICES,
                "period": {"every": "month"}, "api_keys": [{"key": KEY_FORM % number}],
            }
            for number in range(ACCOUNTS)
        ]  # fmt: skip
        rig.load_accounts(config, rig.accounts_file(directory / "accounts.yaml", accounts))
        print("CPU in thousandths of a core (m)")
        print("requests/s  gateway CPU  Valkey CPU  gateway memory  p50")
        for rate in rates:
            rows = [once(gateway.port, gateway.pid, valkey.pid, rate, seconds) for _ in range(ROUNDS)]
            cpu, stored, memory, p50 = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{rate:10d}  {cpu:8.0f} m  {stored:7.0f} m  {memory:11.0f} MB  {p50:.2f} ms", flush=True)


def once(port: int, gateway: int, valkey: int, rate: int, seconds: float) -> tuple[float, float, float, float]:
    """Thousandths of a core of both, the gateway's memory in MB, and the median in ms. Raises `RigError`."""
    before = cpu_s([gateway]), cpu_s([valkey])
    command = [sys.executable, "-m", "loadtests.sizing", "--drive", str(port), str(rate), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(done.stderr.strip().splitlines()[-1])
    answered, p50 = int(done.stdout.split()[0]), float(done.stdout.split()[1])
    if answered != int(rate * seconds):
        raise RigError(f"{int(rate * seconds) - answered} of {int(rate * seconds)} requests were not answered with 200")
    used = [(cpu_s([pid]) - begin) / seconds * 1000 for pid, begin in zip((gateway, valkey), before, strict=True)]
    return used[0], used[1], resident_mb([gateway]), p50


if __name__ == "__main__":
    main()
