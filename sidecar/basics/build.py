"""Which build of the project this is: its release, and whether its request path is compiled."""

from __future__ import annotations

from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Literal

from sidecar import __version__

RequestPath = Literal["compiled", "pure Python"]

_MODULE = "sidecar.gateway.exchange.exchange"
"""mypyc compiles all modules of the request path or none (hatch_build.py), so that one stands for all."""


@cache
def request_path() -> RequestPath:
    """How the request path runs. The pure Python one does the same at about twice the CPU for a request."""
    spec = find_spec(_MODULE)
    origin = spec.origin if spec is not None else None
    return "compiled" if origin is not None and origin.endswith(tuple(EXTENSION_SUFFIXES)) else "pure Python"


def describe() -> str:
    """Release and build for people, as ``0.2.0 (compiled)``."""
    return f"{__version__} ({request_path()})"
