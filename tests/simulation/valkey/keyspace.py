"""The keys of a server. A snapshot of them costs a copy of the table: a value is copied when it is changed next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from tests.simulation.valkey.replies import WRONGTYPE, CommandError
from tests.simulation.valkey.values import Hash, List, SortedSet, Stream, Value

T = TypeVar("T", Hash, SortedSet, Stream, List)


@dataclass(frozen=True, slots=True)
class Contents:
    """All keys at one instant. Nobody changes the values of one."""

    values: dict[bytes, Value]
    expires: dict[bytes, int]


class Keyspace:
    """``now_ms``: the instant of the call that is under way."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.values: dict[bytes, Value] = {}
        self.expires: dict[bytes, int] = {}
        self._shared: set[bytes] = set()
        """Keys whose value a snapshot has too."""

    def __len__(self) -> int:
        return len(self.values)

    def snapshot(self) -> Contents:
        self._shared = set(self.values)
        return Contents(dict(self.values), dict(self.expires))

    def restore(self, contents: Contents) -> None:
        self.values, self.expires = dict(contents.values), dict(contents.expires)
        self._shared = set(self.values)

    def clear(self) -> None:
        self.values, self.expires, self._shared = {}, {}, set()

    def find(self, key: bytes) -> Value | None:
        """The value, whatever its type; None if there is none or it has expired."""
        if self.expires and self.expires.get(key, self.now_ms) < self.now_ms:
            self.remove(key)
        return self.values.get(key)

    def has(self, key: bytes) -> bool:
        return self.find(key) is not None

    def string(self, key: bytes) -> bytes | None:
        """Raises CommandError (WRONGTYPE)."""
        value = self.find(key)
        if value is None or type(value) is bytes:
            return value
        raise CommandError(WRONGTYPE)

    def read(self, key: bytes, kind: type[T]) -> T | None:
        """The value, not to be changed. Raises CommandError (WRONGTYPE)."""
        value = self.find(key)
        if value is None or type(value) is kind:
            return value
        raise CommandError(WRONGTYPE)

    def write(self, key: bytes, kind: type[T]) -> T | None:
        """The value, to be changed. Raises CommandError (WRONGTYPE)."""
        value = self.read(key, kind)
        if value is not None and key in self._shared:
            self._shared.discard(key)
            value = self.values[key] = value.copy()
        return value

    def write_or_create(self, key: bytes, kind: type[T]) -> T:
        """Raises CommandError (WRONGTYPE)."""
        value = self.write(key, kind)
        if value is None:
            value = self.values[key] = kind()
            self._shared.discard(key)
        return value

    def set(self, key: bytes, value: Value) -> None:
        """Replaces the value. Its expiry, if there is one, stays."""
        self.values[key] = value
        self._shared.discard(key)

    def set_string(self, key: bytes, value: bytes) -> None:
        """A new string that does not expire."""
        self.values[key] = value
        if self.expires:
            self.expires.pop(key, None)

    def remove(self, key: bytes) -> bool:
        self.expires.pop(key, None)
        self._shared.discard(key)
        return self.values.pop(key, None) is not None

    def remove_if_empty(self, key: bytes, value: Hash | SortedSet) -> None:
        if not (value.fields if isinstance(value, Hash) else value.scores):
            self.remove(key)

    def living(self) -> Iterator[bytes]:
        """Keys that have not expired."""
        for key in list(self.values):
            if self.expires.get(key, self.now_ms) >= self.now_ms:
                yield key
