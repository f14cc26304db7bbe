"""Reading pods that somebody else wrote: whatever is of the wrong kind is named with its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

DEPTH_MAX: Final = 64
NODES_MAX: Final = 100_000
"""Far more than a pod has. A YAML document with aliases can grow beyond all bounds when it is written out."""


class InjectionRefused(Exception):
    """A pod cannot have the sidecar. The message says what is wrong, where, and what to do."""


def plain(value: Any) -> Any:
    """A copy in plain dictionaries and lists.

    Raises:
        InjectionRefused: it is nested too deeply, too large, or a key is no text.
    """
    return _Copy().of(value, 0)


class _Copy:
    def __init__(self) -> None:
        self._nodes = 0

    def of(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > DEPTH_MAX:
            raise InjectionRefused(f"the manifest is nested more than {DEPTH_MAX} deep")
        if self._nodes > NODES_MAX:
            raise InjectionRefused(f"the manifest has more than {NODES_MAX} values")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise InjectionRefused(f"the key {key!r} should be text")
            return {str(key): self.of(each, depth + 1) for key, each in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [self.of(each, depth + 1) for each in value]
        return value


def mapping(value: Any, path: str) -> dict[str, Any]:
    """A mapping, empty for null. Raises `InjectionRefused`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InjectionRefused(f"{path} should be a mapping, not {_kind(value)}")
    return value


def mappings(value: Any, path: str) -> list[dict[str, Any]]:
    """A list of mappings, empty for null. Raises `InjectionRefused`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InjectionRefused(f"{path} should be a list, not {_kind(value)}")
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            raise InjectionRefused(f"{path}[{number}] should be a mapping, not {_kind(each)}")
    return value


def text(value: Any, path: str) -> str:
    """A text that is not empty. Raises `InjectionRefused`."""
    if not isinstance(value, str) or not value:
        raise InjectionRefused(f"{path} should be text, not {_kind(value)}")
    return value


def port_number(value: Any, path: str) -> int:
    """A port from 1 to 65535. Raises `InjectionRefused`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65_535:
        raise InjectionRefused(f"{path} should be a port from 1 to 65535, not {_kind(value)}")
    return value


def seconds(value: Any, path: str, default: int) -> int:
    """A whole number of seconds, ``default`` for null. Raises `InjectionRefused`."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1_000_000_000:
        raise InjectionRefused(f"{path} should be a whole number of seconds, not {_kind(value)}")
    return value


def texts(value: Any, path: str) -> dict[str, str]:
    """A mapping of texts to texts (labels, annotations), empty for null. Raises `InjectionRefused`."""
    found = mapping(value, path)
    for key, each in found.items():
        if not isinstance(each, str):
            raise InjectionRefused(f"{path}: the value of {key} should be text (in quotes), not {_kind(each)}")
    return found


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
