"""Reads the fields of a request's object and gathers what is wrong with them, in Lago's error codes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sidecar.sandbox.lago.lago_wire import Json, invalid

TEXT_CHARS_MAX = 1024
DECIMAL_CHARS_MAX = 40
#: Larger numbers are refused; Lago's columns hold 10^25.
DECIMAL_MAX = Decimal(10) ** 15
INTEGER_MAX = 2**63 - 1
LIST_MAX = 1000
_CURRENCY = re.compile("[A-Z]{3}")


class Fields:
    """One object of a request. Getters answer a usable value and note an error; :meth:`check` raises them all."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = given
        self.errors: dict[str, list[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def error(self, name: str, *codes: str) -> None:
        noted = self.errors.setdefault(name, [])
        noted += [code for code in codes if code not in noted]

    def check(self) -> None:
        """Raises :class:`Refusal` 422 if anything was noted."""
        if self.errors:
            raise invalid(self.errors)

    def text(self, name: str, default: str | None = None, *, chars_max: int = TEXT_CHARS_MAX) -> str | None:
        value = self.given.get(name, default)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.error(name, "value_is_invalid")
            return default
        if len(value) > chars_max:
            self.error(name, "value_is_too_long")
            return default
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if (value is None or not value.strip()) and name not in self.errors:
            self.error(name, "value_is_mandatory")
        return (value or "").strip()

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self.given.get(name, default)
        if isinstance(value, str) and value in allowed:
            return value
        self.error(name, "value_is_invalid")
        return default or allowed[0]

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.given.get(name, default)
        if value is None:
            return default
        return value not in (False, 0, "0", "false", "f", "off", "")

    def integer(self, name: str, default: int | None = None, *, low: int | None = None) -> int | None:
        value = self.given.get(name, default)
        if value is None:
            return None
        number = _integer(value)
        if number is None or abs(number) > INTEGER_MAX or (low is not None and number < low):
            self.error(name, "value_is_invalid")
            return default
        return number

    def amount(self, name: str) -> Decimal | None:
        """A decimal that is a string and not negative (lago-api ``decimal_amount_service.rb``), None where absent.

        Anything else is noted as ``invalid_amount``.
        """
        value = self.given.get(name)
        if value is None:
            return None
        number = decimal_of(value) if isinstance(value, str) else None
        if number is None or not 0 <= number <= DECIMAL_MAX:
            self.error(name, "invalid_amount")
            return None
        return number

    def number(self, name: str, default: Decimal | None = None) -> Decimal | None:
        """A decimal given as a number or as text."""
        value = self.given.get(name)
        if value is None:
            return default
        number = decimal_of(value)
        if number is None or abs(number) > DECIMAL_MAX:
            self.error(name, "value_is_invalid")
            return default
        return number

    def instant(self, name: str, default: datetime | None = None, *, code: str = "invalid_date") -> datetime | None:
        value = self.given.get(name)
        if value is None or value == "":
            return default
        found = parse_instant(value) if isinstance(value, str) else None
        if found is None:
            self.error(name, code)
            return default
        return found

    def currency(self, name: str) -> str | None:
        """An ISO 4217 code, by its form."""
        value = self.text(name)
        if value is not None and not _CURRENCY.fullmatch(value):
            self.error(name, "value_is_invalid")
            return None
        return value

    def timezone(self, name: str) -> str | None:
        value = self.text(name)
        if value is None or value == "":
            return None
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.error(name, "value_is_invalid")
            return None
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.given.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > LIST_MAX or not all(isinstance(item, str) for item in value):
            self.error(name, "value_is_invalid")
            return ()
        return tuple(dict.fromkeys(value))

    def objects(self, name: str) -> list[Json]:
        value = self.given.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > LIST_MAX or not all(isinstance(item, dict) for item in value):
            self.error(name, "value_is_invalid")
            return []
        return value

    def object(self, name: str) -> Json:
        value = self.given.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.error(name, "value_is_invalid")
            return {}
        return value


def decimal_of(value: object) -> Decimal | None:
    """A finite number from JSON's numbers and texts; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).strip()
    if not text or len(text) > DECIMAL_CHARS_MAX or "_" in text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > DECIMAL_CHARS_MAX:
        return None
    return number


def parse_instant(text: str) -> datetime | None:
    """ISO 8601, a date alone included; without an offset it is UTC."""
    if len(text) > 64:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and len(value) <= 20 and value.lstrip("-").isascii() and value.lstrip("-").isdigit():
        return int(value)
    return None
