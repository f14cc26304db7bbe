"""Logging: structured lines on standard error, and the access log, which is written in groups.

Refusals of one kind are sampled: what a client can cause by the thousand must not fill a disk, or hide what matters.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from contextlib import suppress
from typing import Final, TextIO, cast

import orjson

from sidecar.basics.log_writer import LogWriter
from sidecar.basics.logger import log_writer, structlog, write_by

FLUSH_S = 0.1

_STATUS: Final = re.compile(rb'"status":(\d)')
"""In text from a caller the quotes have backslashes before them."""
_FIRST: Final = ("timestamp", "level", "event")
_LEVELS: Final = {b"4": "warning", b"5": "error"}


def configure(level: str, style: str, stream: TextIO | None = None, *, waits: bool = True) -> None:
    """``style``: ``json``, one object a line, or ``console``, for people. ``waits`` False: no line waits until standard
    error takes it, as in a process that serves."""
    out = stream or sys.stderr
    writer = None if waits else LogWriter(out.fileno())
    write_by(writer)
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
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", writer) if writer is not None else out),
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
        self._writer = log_writer() if stream is None else None
        self._out = out.buffer
        self._for_people = structlog.dev.ConsoleRenderer(colors=out.isatty()) if style == "console" else None
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, line: bytes) -> None:
        stamp = time.time()
        whole = int(stamp)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        at = f"{text}.{int((stamp - whole) * 1_000_000):06d}Z"
        if self._for_people is None:
            made = b'{"timestamp":"%b","level":"%b",%b\n' % (at.encode(), _level(line).encode(), line[1:])
        else:
            made = self._rendered(line, at)
        self._lines.append(made)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def _rendered(self, line: bytes, at: str) -> bytes:
        assert self._for_people is not None
        known = {name: _printable(value) for name, value in orjson.loads(line).items() if value is not None}
        rendered = self._for_people(None, "", {"timestamp": at, "level": _level(line), **known})
        return f"{rendered}\n".encode()

    def flush(self) -> None:
        self._timer = None
        lines, self._lines = self._lines, []
        if self._writer is not None:
            self._writer.write_bytes(b"".join(lines))
            return
        with suppress(OSError, ValueError):
            self._out.write(b"".join(lines))
            self._out.flush()


def _level(line: bytes) -> str:
    found = _STATUS.search(line)
    return _LEVELS.get(found[1], "info") if found else "info"


def _printable(value: object) -> object:
    """A caller's text cannot steer a terminal, or begin a line."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)
