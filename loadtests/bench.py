"""``make bench``: the real gateway beside a plain pass-through, on this machine, on loopback.

Contenders: the upstream itself; the gateway on a free route (it proxies and nothing else); the gateway on a charged
route with everything on (API key, hold, settle, usage event, credit headers, metrics); and nginx as a plain proxy where
it is installed. All run in turn, several rounds, and medians with their spread are printed. CPU is that of the proxy
process (and of Valkey) from /proc, divided by the requests of the same interval. The load generator shares the
machine, so requests/s say less than CPU per request, and only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson
import redis
from rich import box
from rich.console import Console
from rich.table import Table

CHARGED, FREE = "/open-banking/v3.1/aisp/accounts", "/free"
KEY = "bench-key-0123456789abcdef"
TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    port: int
    path: str
    pids: tuple[int, ...]
    valkey: int | None = None


@contextmanager
def running(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def cpu_s(pids: tuple[int, ...]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_S


def start_gateway(stack: ExitStack, directory: Path, upstream: int) -> list[Contender]:
    socket = directory / "valkey" / "valkey.sock"
    accounts = {"accounts": [{
        "id": "tpp-bench", "mode": "prepaid", "currency": "GBP", "funds": "1000000000",
        "prices": {"api_calls": {"model": "graduated", "tiers": [
            {"up_to": 10000, "unit": "0"}, {"unit": "0.001"}]}},
        "period": {"every": "month"}, "api_keys": [{"key": KEY}],
    }]}  # fmt: skip
    config = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": f"http://127.0.0.1:{upstream}"},
        "valkey": f"embedded://{directory}/valkey",
        "routes": [{"path": FREE, "free": True}, {"path": CHARGED}],
        "admin": {"port": 0},
        "log": {"level": "warning", "access": "off"},
    }
    (directory / "accounts.yaml").write_bytes(orjson.dumps(accounts))
    (directory / "gateway.yaml").write_bytes(orjson.dumps(config))
    gateway = stack.enter_context(
        running(sys.executable, "-m", "sidecar", "run", "-c", str(directory / "gateway.yaml"), "--json")
    )
    assert gateway.stdout is not None
    port = int(json.loads(gateway.stdout.readline())["proxy"].rpartition(":")[2])
    load = (sys.executable, "-m", "sidecar", "account", "load", str(directory / "accounts.yaml"))
    subprocess.run([*load, "-c", str(directory / "gateway.yaml")], check=True, stdout=subprocess.DEVNULL)
    valkey = int(redis.Redis(unix_socket_path=str(socket)).info("server")["process_id"])
    pids = (gateway.pid,)
    return [
        Contender("gateway, free route", port, FREE, pids),
        Contender("gateway, charged route", port, CHARGED, pids, valkey),
    ]


def start_nginx(stack: ExitStack, directory: Path, upstream: int) -> list[Contender]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        return []
    port = 18_000 + os.getpid() % 1000
    (directory / "nginx.conf").write_text(f"""
        daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
        events {{ worker_connections 4096; }}
        http {{ access_log off; keepalive_requests 100000000;
          upstream api {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
          server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
            proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $http_host; }} }} }}
    """)
    process = stack.enter_context(running(nginx, "-c", str(directory / "nginx.conf"), "-p", str(directory)))
    time.sleep(0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Contender("nginx, plain proxy", port, CHARGED, (process.pid, *map(int, children)))]


def await_line(client: subprocess.Popen[str], word: str) -> None:
    assert client.stdout is not None
    line = client.stdout.readline().strip()
    if line != word:
        raise SystemExit(f"the load generator said {line!r} instead of {word!r}")


def measure(contender: Contender, connections: int, seconds: float) -> dict[str, float]:
    valkey = (contender.valkey,) if contender.valkey else ()
    with running(
        sys.executable, "-m", "loadtests.client", str(contender.port), contender.path, str(connections), str(seconds),
        f"X-API-Key: {KEY}",
    ) as client:  # fmt: skip
        assert client.stdout is not None
        await_line(client, "began")
        before, valkey_before = cpu_s(contender.pids), cpu_s(valkey)
        await_line(client, "ended")
        after, valkey_after = cpu_s(contender.pids), cpu_s(valkey)
        result = json.loads(client.stdout.readline())
    if result["failed"]:
        raise SystemExit(f"{contender.name}: {result['failed']} answers were not 200")
    requests = result["requests"]
    return {
        "requests_per_s": requests / seconds,
        "cpu_us": (after - before) / requests * 1e6,
        "valkey_cpu_us": (valkey_after - valkey_before) / requests * 1e6,
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--json", type=Path, help="also write the result there")
    arguments = parser.parse_args()
    # Wide enough for the table wherever the output goes.
    console = Console(width=max(150, shutil.get_terminal_size().columns))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-bench-")))
        upstream = stack.enter_context(running(sys.executable, "-m", "loadtests.upstream"))
        assert upstream.stdout is not None
        upstream_port = int(upstream.stdout.readline())
        contenders = [Contender("upstream, no proxy", upstream_port, CHARGED, (upstream.pid,))]
        contenders += start_nginx(stack, directory, upstream_port)
        contenders += start_gateway(stack, directory, upstream_port)
        total = len(arguments.connections) * arguments.rounds * len(contenders)
        results: dict[tuple[int, str], list[dict[str, float]]] = {}
        done = 0
        progress = stack.enter_context(Console(stderr=True).status("starting"))
        for number in range(arguments.rounds):
            for connections in arguments.connections:
                for contender in contenders:
                    done += 1
                    what = f"{contender.name}, {connections} connections"
                    progress.update(f"round {number + 1}: {what} ({done}/{total})")
                    found = measure(contender, connections, arguments.seconds)
                    results.setdefault((connections, contender.name), []).append(found)
    show(console, results)
    if arguments.json:
        rows = [{"connections": c, "contender": n, "rounds": r} for (c, n), r in results.items()]
        document = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
        arguments.json.write_bytes(orjson.dumps({**document, "results": rows}, option=orjson.OPT_INDENT_2))


def show(console: Console, results: dict[tuple[int, str], list[dict[str, float]]]) -> None:
    table = Table(title="medians (lowest to highest)", title_justify="left", box=box.SIMPLE)
    for column in ("conn.", "contender", "requests/s", "CPU µs/req.", "Valkey µs/req.", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for (connections, name), rounds in results.items():
        cells = []
        for key, form in (("requests_per_s", ".0f"), ("cpu_us", ".1f"), ("valkey_cpu_us", ".1f"), ("p50_ms", ".2f"),
                          ("p99_ms", ".2f")):  # fmt: skip
            values = [each[key] for each in rounds]
            if key == "valkey_cpu_us" and not any(values):
                cells.append("")
            else:
                cells.append(f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})")
        table.add_row(str(connections), name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
