"""The compiled core, where it was built. Without it everything works as well, in pure Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sidecar.gateway.http1.name_patterns import NamePatterns

if TYPE_CHECKING:
    from sidecar.gateway.http1.body import BodyKind

PURE_VARIABLE = "QUOTA_SIDECAR_PURE_PYTHON"
"""Set to anything, it keeps the scanner out: to compare, or to rule it out as the cause of something. Names that begin
with ``SIDECAR_`` are the configuration's."""


RequestParts = tuple[
    bytes, bytes, bytes, bytes, bytes, int, bytes, "dict[bytes, bytes]", "BodyKind", int, bool, int, bool
]
"""What `RequestHead` is made of, in its order, as far as ``keep_alive``; the position after the head; ``marked``."""
ResponseParts = tuple[int, bytes, int, bytes, "dict[bytes, bytes]", "BodyKind", int, bool, int, bool]
"""The same of `ResponseHead`."""


class HeadScanner(Protocol):
    """Reads usual heads as `HeadParser` does; None leaves a head to it."""

    def request(self, buf: bytes, start: int, /) -> RequestParts | None: ...
    def response(self, buf: bytes, start: int, /) -> ResponseParts | None: ...


ScannerFactory = Callable[
    [dict[bytes, bool], int, int, int, int, int | None, NamePatterns, frozenset[bytes]], HeadScanner
]


def _load() -> ScannerFactory | None:
    if os.environ.get(PURE_VARIABLE):
        return None
    try:
        from sidecar.gateway.http1 import _scan  # type: ignore[attr-defined]
    except ImportError:
        return None
    factory: ScannerFactory = _scan.Scanner
    return factory


scanner_factory = _load()
"""Makes a scanner, or None: see `framing.HeadParser`."""
