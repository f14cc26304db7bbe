"""The corpus: cases of bytes, what is to be made of them, and why. Read from ``corpus/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sidecar.gateway.http1.limits import Limits

__all__ = ["Case", "PathCase", "cases", "path_cases", "two_pieces"]

_FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """Exactly one of ``accept``, ``refuse`` and ``pending`` is given."""

    name: str
    data: bytes
    why: str
    accept: Any = None
    refuse: int | None = None
    pending: bool = False
    rest: bytes = b""
    request: bytes = b"GET"
    chunks: bytes | None = None
    body_bytes_max: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        assert (self.accept is not None) + (self.refuse is not None) + self.pending == 1, self.name


@dataclass(frozen=True)
class PathCase:
    path: bytes
    why: str
    route: bytes | None = None
    refuse: bool = False


def _load(name: str) -> list[dict[str, Any]]:
    loaded = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, list)
    return loaded


def cases(name: str) -> list[Case]:
    found = []
    for raw in _load(name):
        raw["data"] = raw.pop("bytes").encode("latin-1")
        for key in ("rest", "request", "chunks"):
            if key in raw:
                raw[key] = raw[key].encode("latin-1")
        raw["limits"] = Limits(**raw.get("limits", {}))
        found.append(Case(**raw))
    assert len({case.name for case in found}) == len(found), "two cases have the same name"
    return found


def path_cases() -> list[PathCase]:
    found = []
    for raw in _load("paths"):
        route = raw.pop("route", None)
        path = raw.pop("path").encode("latin-1")
        found.append(PathCase(path=path, route=route.encode("latin-1") if route else None, **raw))
    return found


def two_pieces(data: bytes) -> list[list[bytes]]:
    """``data`` cut in two at every place."""
    return [[data[:at], data[at:]] for at in range(1, len(data))]
