"""Honest callers at a steady rate: what they were answered, and how long it took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

CALLERS: Final = 4
CONNECTIONS: Final = 16
KEY_FORM: Final = "key-of-an-honest-caller-%04d"
TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Honest:
    """Answers by status, or by what there was instead, and the latencies of good ones in ms."""

    answers: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return self.answers.total()

    @property
    def good(self) -> int:
        return self.answers["200"]

    def percentile(self, share: float) -> float:
        """Of the latencies, in ms; infinite if nothing was answered."""
        if not self.took_ms:
            return float("inf")
        ordered = sorted(self.took_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _request(number: int, turn: int) -> bytes:
    head = f"Host: api.bank.example\r\nX-API-Key: {KEY_FORM % (number % CALLERS)}\r\n"
    if turn % 4:
        return f"GET /accounts/{turn % 1000} HTTP/1.1\r\n{head}\r\n".encode()
    return f"POST /payments HTTP/1.1\r\n{head}Content-Length: 300\r\n\r\n".encode() + b"x" * 300


async def drive(port: int, per_second: float, seconds: float) -> Honest:
    """Sends at the rate for so long, over kept-alive connections; one that is closed while it is idle is made anew, as
    every client does."""
    found = Honest()
    begin = time.monotonic() + 0.1

    async def one(number: int) -> None:
        pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for turn in range(number, int(per_second * seconds), CONNECTIONS):
            due = begin + turn / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    if pair is None or pair[0].at_eof() or pair[1].is_closing():
                        if pair is not None:
                            pair[1].close()
                        pair = await asyncio.open_connection("127.0.0.1", port)
                    status = await _exchange(*pair, _request(number, turn))
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                status = type(error).__name__
                if pair is not None:
                    pair[1].transport.abort()
                pair = None
            found.answers[status] += 1
            if status == "200":
                found.took_ms.append((time.monotonic() - sent) * 1000)
        if pair is not None:
            pair[1].close()

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return found


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or b"0"))
    return head[9:12].decode()
