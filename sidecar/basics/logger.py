"""Where loggers come from. How lines look is configured in `app.logs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sidecar.basics.log_writer import LogWriter

__all__ = ["get_logger", "log_writer", "structlog", "wait_until_logged", "write_by"]

_UNWANTED = ("rich", "greenlet")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Imports of these fail in the block, unless they were imported before."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "there is none"
    try:
        yield
    finally:
        for name in absent:
            with suppress(KeyError):
                del sys.modules[name]


# structlog imports rich where there is one, to paint tracebacks. With what that brings it would be 4 MB of a gateway.
with _without(_UNWANTED):
    import structlog


def get_logger(name: str) -> Any:
    """A structlog logger: ``log.info("what happened", key=value)``."""
    return structlog.get_logger(name)


_writer: list[LogWriter | None] = [None]


def write_by(writer: LogWriter | None) -> None:
    """Says what writes this process's lines; None: each waits until standard error has it."""
    _writer[0] = writer


def log_writer() -> LogWriter | None:
    """What writes this process's lines."""
    return _writer[0]


def wait_until_logged(timeout_s: float) -> bool:
    """Waits until all lines are written, at most so long; whether they are. For lines that are worth it."""
    writer = _writer[0]
    return writer is None or writer.drain(timeout_s)
