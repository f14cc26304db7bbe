"""Logging: structured lines on standard error, and the access log, which is written in groups."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from typing import Final, TextIO

import orjson

from sidecar.basics.logger import structlog

FLUSH_S = 0.1
WAITING_BYTES_MAX = 8 * 1024 * 1024
"""Access lines held for a standard error that does not take them; beyond it they are counted and dropped."""

_STATUS: Final = re.compile(rb'"status":(\d)')
"""In text from a caller the quotes have backslashes before them."""
_FIRST: Final = ("timestamp", "level", "event")
_LEVELS: Final = {b"4": "warning", b"5": "error"}


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """``style``: ``json``, one object a line, or ``console``, for people."""
    out = stream or sys.stderr
    renderer: structlog.typing.Processor
    if style == "json":
        renderer = structlog.processors.JSONRenderer(separators=(",", ":"))
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _in_order,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING)


def _in_order(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The fields of every line in the order of the access log."""
    return {**{name: line.pop(name) for name in _FIRST if name in line}, **line}


class _LibraryHandler(logging.Handler):
    """Lines that libraries log with Python's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


class AccessLog:
    """Lines about requests, written together every tenth of a second. They come as JSON and leave in the format of the
    rest of the log (``style``), each with a time and a level."""

    def __init__(self, style: str, stream: TextIO | None = None) -> None:
        out = stream or sys.stderr
        self._out = out.buffer
        self._for_people = structlog.dev.ConsoleRenderer(colors=out.isatty()) if style == "console" else None
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
        at = f"{text}.{int((stamp - whole) * 1_000_000):06d}Z"
        if self._for_people is None:
            made = b'{"timestamp":"%b","level":"%b",%b\n' % (at.encode(), _level(line).encode(), line[1:])
        else:
            made = self._rendered(line, at)
        self._lines.append(made)
        self._bytes += len(made)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def _rendered(self, line: bytes, at: str) -> bytes:
        assert self._for_people is not None
        known = {name: _printable(value) for name, value in orjson.loads(line).items() if value is not None}
        rendered = self._for_people(None, "", {"timestamp": at, "level": _level(line), **known})
        return f"{rendered}\n".encode()

    def flush(self) -> None:
        self._timer = None
        lines, self._lines, self._bytes = self._lines, [], 0
        try:
            self._out.write(b"".join(lines))
            self._out.flush()
        except (OSError, ValueError):
            self.dropped += len(lines)


def _level(line: bytes) -> str:
    found = _STATUS.search(line)
    return _LEVELS.get(found[1], "info") if found else "info"


def _printable(value: object) -> object:
    """A caller's text cannot steer a terminal, or begin a line."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)
