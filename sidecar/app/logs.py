"""Logging: structured lines on standard error, and the access log, which is written in groups."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TextIO

from sidecar.basics.logger import structlog

FLUSH_S = 0.1
WAITING_BYTES_MAX = 8 * 1024 * 1024
"""Access lines held for a standard error that does not take them; beyond it they are counted and dropped."""


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """``style``: ``json``, one object a line, or ``console``, for people."""
    out = stream or sys.stderr
    renderer: structlog.typing.Processor
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=out, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


class AccessLog:
    """Lines of JSON, each with the time put before it, written together every tenth of a second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = (stream or sys.stderr).buffer
        self._lines: list[bytes] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.dropped = 0

    def __call__(self, line: bytes) -> None:
        if self._bytes > WAITING_BYTES_MAX:
            self.dropped += 1
            return
        stamp = time.time()
        whole = int(stamp)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        self._lines.append(b'{"timestamp":"%b.%03dZ",%b\n' % (text.encode(), int((stamp - whole) * 1000), line[1:]))
        self._bytes += len(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        self._timer = None
        lines, self._lines, self._bytes = self._lines, [], 0
        try:
            self._out.write(b"".join(lines))
            self._out.flush()
        except (OSError, ValueError):
            self.dropped += len(lines)
