"""The compiled core, where it was built. Without it everything works as well, in pure Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidecar.proxy.heads import RequestHead, ResponseHead

PURE_VARIABLE = "QUOTA_SIDECAR_PURE_PYTHON"
"""Set to anything, it keeps the scanner out: to compare, or to rule it out as the cause of something. Names that begin
with ``SIDECAR_`` are the configuration's."""


class HeadScanner(Protocol):
    """Reads usual heads as `HeadParser` does; None leaves a head to it."""

    def request(self, buf: bytes, start: int, /) -> tuple[RequestHead, int] | None: ...
    def response(self, buf: bytes, start: int, /) -> tuple[ResponseHead, int] | None: ...


ScannerFactory = Callable[[dict[bytes, bool], int, int, int, int, int | None], HeadScanner]


def _load() -> ScannerFactory | None:
    if os.environ.get(PURE_VARIABLE):
        return None
    try:
        from sidecar.proxy import _scan  # type: ignore[attr-defined]
    except ImportError:
        return None
    factory: ScannerFactory = _scan.Scanner
    return factory


scanner_factory = _load()
"""Makes a scanner, or None: see `framing.HeadParser`."""
