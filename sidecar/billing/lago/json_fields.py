"""Typed access to the objects of an answer. Errors name the endpoint and path of a missing or wrong field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NoReturn

from sidecar.billing.lago.errors import LagoMalformed, excerpt

CENTS_MAX: Final = 10**18
TEXT_CHARS_MAX: Final = 65_536
NUMBER_CHARS_MAX: Final = 64
ROWS_MAX: Final = 100_000
NESTING_MAX: Final = 16
"""Of what is kept as Lago gives it, such as the properties of a charge."""

_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_INSTANT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}[0-9.:+Z-]*")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def number_of(value: object) -> Decimal | None:
    """A number of JSON, or a text that is one, exactly; None for anything else, and for 10^18 and more."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(value) if abs(value) <= CENTS_MAX else None
    if isinstance(value, str):
        if len(value) > NUMBER_CHARS_MAX or not _NUMBER.fullmatch(value):
            return None
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or len(value.as_tuple().digits) > NUMBER_CHARS_MAX:
        return None
    # The order of magnitude first: 1E+999999 written out would fill the memory.
    if value and not -NUMBER_CHARS_MAX <= value.adjusted() <= 18:
        return None
    return value if value.copy_abs() <= CENTS_MAX else None


def whole_number_of(value: object) -> int | None:
    """The same for whole numbers: 10, 10.0 and "10" are, 10.5 is not."""
    number = number_of(value)
    return int(number) if number is not None and number == number.to_integral_value() else None


def instant_ms_of(value: object) -> int | None:
    """Unix milliseconds of an ISO 8601 time, rounded down; None if it is none. One without an offset is in UTC."""
    if not isinstance(value, str) or len(value) > NUMBER_CHARS_MAX or not _INSTANT.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        passed = moment - _EPOCH
    except (ValueError, OverflowError):
        return None
    return passed // _MS if passed >= timedelta(0) else None


class Fields:
    """One object of an answer. ``endpoint`` and ``path`` say where it was, for errors.

    Every method raises ``LagoMalformed``. Those that promise a value want the field there; null counts as not there.
    """

    __slots__ = ("_endpoint", "_path", "_values")

    def __init__(self, values: object, endpoint: str, path: str = "") -> None:
        self._endpoint = endpoint
        self._path = path
        self._values: dict[str, Any] = values if isinstance(values, dict) else self.refuse("", "an object", values)

    def __repr__(self) -> str:
        return f"Fields({self._endpoint} {self._path or '.'})"

    @property
    def values(self) -> dict[str, Any]:
        """The object itself."""
        return self._values

    def has(self, name: str) -> bool:
        """Whether the answer says anything about it, be it null."""
        return name in self._values

    def text(self, name: str) -> str:
        found = self.text_or_none(name)
        return found if found is not None else self.refuse(name, "a text", None)

    def text_or_none(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > TEXT_CHARS_MAX):
            self.refuse(name, f"a text of at most {TEXT_CHARS_MAX} characters", value)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        return value if isinstance(value, bool) else self.refuse(name, "true or false", value)

    def whole(self, name: str) -> int:
        found = self.whole_or_none(name)
        return found if found is not None else self.refuse(name, "a whole number", None)

    def whole_or_none(self, name: str) -> int | None:
        """Also for cents: at most 10^18 of them."""
        value = self._values.get(name)
        if value is None:
            return None
        found = whole_number_of(value)
        return found if found is not None else self.refuse(name, "a whole number up to 10^18", value)

    def number(self, name: str) -> Decimal:
        found = self.number_or_none(name)
        return found if found is not None else self.refuse(name, "a number", None)

    def number_or_none(self, name: str) -> Decimal | None:
        value = self._values.get(name)
        if value is None:
            return None
        found = number_of(value)
        return found if found is not None else self.refuse(name, "a number up to 10^18", value)

    def instant_ms(self, name: str) -> int:
        found = self.instant_ms_or_none(name)
        return found if found is not None else self.refuse(name, "a time", None)

    def instant_ms_or_none(self, name: str) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        found = instant_ms_of(value)
        return found if found is not None else self.refuse(name, "a time since 1970 in ISO 8601", value)

    def end_ms(self, name: str) -> int:
        """The first instant after a period whose last second is named: Lago ends them at 23:59:59 or 23:59:59.999."""
        return _after(self.instant_ms(name))

    def end_ms_or_none(self, name: str) -> int | None:
        found = self.instant_ms_or_none(name)
        return None if found is None else _after(found)

    def row(self, name: str) -> Fields:
        return Fields(self._values.get(name), self._endpoint, self._at(name))

    def row_or_none(self, name: str) -> Fields | None:
        return None if self._values.get(name) is None else self.row(name)

    def listed(self, name: str) -> tuple[Fields, ...]:
        """A list of objects."""
        return self.rows(name) if self._values.get(name) is not None else self.refuse(name, "a list", None)

    def rows(self, name: str) -> tuple[Fields, ...]:
        """The same; empty where it is missing."""
        return tuple(Fields(each, self._endpoint, f"{self._at(name)}[{i}]") for i, each in enumerate(self._list(name)))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty where it is missing."""
        found = self._list(name)
        if not all(isinstance(each, str) and len(each) <= TEXT_CHARS_MAX for each in found):
            self.refuse(name, "a list of texts", found)
        return tuple(found)

    def texts_or_none(self, name: str) -> tuple[str, ...] | None:
        return None if self._values.get(name) is None else self.texts(name)

    def properties(self, name: str) -> Mapping[str, Any]:
        """An object kept as Lago gives it, with every number a ``Decimal``; empty where it is missing."""
        value = self._values.get(name)
        kept = {} if value is None else self._plain(name, value, NESTING_MAX)
        return kept if isinstance(kept, dict) else self.refuse(name, "an object", value)

    def _plain(self, name: str, value: Any, levels: int) -> Any:
        if levels == 0:
            self.refuse(name, f"nested at most {NESTING_MAX} deep", None)
        if isinstance(value, dict):
            return {key: self._plain(f"{name}.{key}", below, levels - 1) for key, below in value.items()}
        if isinstance(value, list):
            return [self._plain(f"{name}[{i}]", below, levels - 1) for i, below in enumerate(value)]
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            found = number_of(value)
            return found if found is not None else self.refuse(name, "a number up to 10^18", value)
        return value

    def _list(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > ROWS_MAX:
            self.refuse(name, f"a list of at most {ROWS_MAX}", value)
        found: list[Any] = value
        return found

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, wanted: str, value: object) -> NoReturn:
        """Raises: the field ``name``, or the object itself if that is empty, is ``value`` and not as ``wanted``."""
        where = self._at(name) if name else self._path or "the answer"
        found = "it is missing" if value is None else f"it is {_shown(value)}"
        raise LagoMalformed(f"{self._endpoint}: {excerpt(where)} is not {wanted}: {found}")


def _after(last_ms: int) -> int:
    return last_ms // 1000 * 1000 + 1000


def _shown(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return "a list" if isinstance(value, list | tuple) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a very large number"
    return excerpt(repr(value), 60)
