"""Writes log lines without ever waiting for who reads them.

Standard error is mostly a pipe. When nobody reads it, a write waits, and with it all of an event loop: readiness,
requests, the ledger. So a thread writes, and lines wait for it in a buffer with a limit.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from typing import Final

WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
"""Lines that wait for a standard error that does not take them; beyond it they are counted and dropped."""
WRITE_BYTES_MAX: Final = 65_536
"""Written at once: what a pipe of Linux holds."""
EXIT_S: Final = 1.0
"""At the end of the process lines wait no longer than that to be read."""


class LogWriter:
    """Lines of a process on their way to a file descriptor. Safe to use from all threads; nothing in it waits but
    ``drain``. ``dropped``: lines that found no room, or could not be written."""

    def __init__(self, descriptor: int, waiting_bytes_max: int = WAITING_BYTES_MAX) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._is_writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"LogWriter({self._descriptor}, {self._bytes} bytes waiting, {self.dropped} dropped)"

    def write(self, text: str) -> int:
        """As of a text stream: whole lines."""
        self.write_bytes(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """As of a text stream; lines leave by themselves."""

    def write_bytes(self, lines: bytes) -> None:
        """Hand over whole lines."""
        with self._changed:
            if self._bytes + len(lines) > self._waiting_bytes_max:
                self.dropped += lines.count(b"\n")
                return
            self._waiting.append(lines)
            self._bytes += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.drain, EXIT_S)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all lines are written; whether they are."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting or self._is_writing:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def _run(self) -> None:
        lost = 0
        while True:
            with self._changed:
                self.dropped += lost
                self._is_writing = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                chunk = self._take()
                self._is_writing = True
            lost = 0 if self._written(chunk) else chunk.count(b"\n")

    def _take(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._waiting and (not parts or size + len(self._waiting[0]) <= WRITE_BYTES_MAX):
            parts.append(self._waiting.popleft())
            size += len(parts[-1])
        self._bytes -= size
        return b"".join(parts)

    def _written(self, chunk: bytes) -> bool:
        rest = memoryview(chunk)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(0.05)  # somebody who shares the descriptor has made it non-blocking
            except OSError:
                return False
        return True
