"""Real gateways as processes, an API behind them, and clients that remember every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.api_keys import digest_of
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Standard

PATH = "/open-banking/v3.1/aisp/accounts"
METRIC = "api_calls"
TIMEOUT_S = 20.0
KEYS = Keys()
READ_BYTES = 65_536


def key_of(account: str) -> str:
    return f"key-of-{account}-0123456789"


async def load(client: Redis, accounts: dict[str, int]) -> None:
    """Prepaid accounts that can pay for so many calls."""
    loader = AccountLoader(client, KEYS)
    for account, calls in accounts.items():
        await loader.load(
            AccountSpec(
                id=account, mode="prepaid", currency="GBP", period=CalendarPeriods("month"),
                prices={METRIC: Standard(Decimal("0.01"))}, funds=Decimal(calls) / 100,
                api_keys=(digest_of(key_of(account)),),
            )
        )  # fmt: skip


@dataclass
class Api:
    """The bank's API, in this process: answers every request with 200, after ``delay_s``. Counts what it was asked."""

    delay_s: float = 0.0
    asked: int = 0
    url: str = ""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Api]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def settings(valkey: str, upstream: str, **sections: Any) -> dict[str, Any]:
    """A gateway's configuration; ``sections`` are merged into it."""
    document: dict[str, Any] = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": upstream},
        "valkey": valkey,
        "routes": [{"path": PATH, "metric": METRIC}],
        "admin": {"host": "127.0.0.1", "port": 0},
        "log": {"level": "info", "access": "off"},
        "ledger": {"heartbeat_ms": 200, "instance_ttl_ms": 1_000, "hold_budget_ms": 5_000},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
    return document


@dataclass
class Process:
    """A started ``sidecar`` command. ``ready`` is the line that it printed; ``log`` what it wrote to standard error."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self.ready["proxy"].rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(self.ready["admin"].rpartition(":")[2])

    @property
    def health_port(self) -> int:
        return int(self.ready["health"].rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        # Not by send_signal of the process: that looks whether it has ended, and so takes its exit code from who waits.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal and answers its exit code."""
        self.send(number)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                code = await self.process.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            raise AssertionError(f"does not end: {''.join(self.log)}") from None
        if self.reader is not None:
            await self.reader
        return code

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log.append(line.decode())


async def start(document: dict[str, Any], directory: Path, command: str = "run", name: str = "gateway") -> Process:
    """Starts ``sidecar run`` (or another command) and waits until it serves."""
    file = directory / f"{name}.yaml"
    file.write_text(json.dumps(document))  # JSON is YAML
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", command, "-c", str(file), "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")},
    )  # fmt: skip
    process = Process(started)
    process.reader = asyncio.create_task(process._read_log())
    assert started.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        line = await started.stdout.readline()
    if not line:
        await process.end()
        raise AssertionError(f"exit code {started.returncode}: {''.join(process.log)}")
    process.ready = json.loads(line)
    return process


@asynccontextmanager
async def gateways(
    directory: Path, *documents: dict[str, Any], command: str = "run", name: str = "gateway"
) -> AsyncIterator[list[Process]]:
    """Several at once; those that still run at the end are told to stop."""
    starting = [start(each, directory, command, f"{name}-{n}") for n, each in enumerate(documents)]
    processes = await asyncio.gather(*starting)
    try:
        yield processes
    finally:
        for process in processes:
            process.send(signal.SIGCONT)
        await asyncio.gather(*(process.end() for process in processes))


@dataclass
class Answers:
    """What clients saw. ``lost``: requests that were sent and never answered whole; ``refused``: connections that were
    not accepted."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    lost: int = 0
    refused: int = 0
    heads: list[bytes] = field(default_factory=list)


class Caller:
    """One client on a kept-alive connection that it makes again when it is lost."""

    def __init__(self, port: Callable[[], int] | int, account: str, answers: Answers) -> None:
        self._port = port
        self._answers = answers
        self._request = f"GET {PATH} HTTP/1.1\r\nHost: api\r\nX-API-Key: {key_of(account)}\r\n\r\n".encode()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self) -> int | None:
        """The status of one request; None if it was not answered."""
        answers = self._answers
        try:
            if self._writer is None:
                port = self._port if isinstance(self._port, int) else self._port()
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            answers.refused += 1
            await asyncio.sleep(0.01)
            return None
        assert self._reader is not None
        answers.sent += 1
        try:
            self._writer.write(self._request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            await self._reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            answers.lost += 1
            self.close()
            return None
        status = int(head[9:12])
        answers.statuses[status] += 1
        if status >= 500:
            answers.heads.append(head)
        if re.search(rb"(?i)\r\nconnection: *close", head):
            self.close()
        return status

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


async def storm(port: Callable[[], int] | int, account: str, clients: int, calls: int, answers: Answers) -> None:
    """``calls`` requests in all, shared out among ``clients`` that send at the same time."""
    left = calls

    async def client() -> None:
        nonlocal left
        caller = Caller(port, account, answers)
        while left > 0:
            left -= 1
            await caller.call()
        caller.close()

    await asyncio.gather(*(client() for _ in range(clients)))


async def load_until(
    stop: asyncio.Event, port: Callable[[], int] | int, account: str, clients: int, answers: Answers
) -> None:
    """Requests without a pause until ``stop``; each client ends with its answer."""

    async def client() -> None:
        caller = Caller(port, account, answers)
        while not stop.is_set():
            await caller.call()
        caller.close()

    await asyncio.gather(*(client() for _ in range(clients)))


async def get(port: int, path: str) -> tuple[int, str]:
    """Asks an admin side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
        raw = await reader.read()
    finally:
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head[9:12]), body.decode()


async def until(condition: Callable[[], Any], what: object = "") -> None:
    """Waits for what must come to be; a test that waits in vain fails here. ``condition`` may be a coroutine."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                result = condition()
                if asyncio.iscoroutine(result):
                    result = await result
                if result:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never came to be: {what!r}") from None
