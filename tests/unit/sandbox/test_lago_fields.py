"""What is taken from requests, and what is noted as wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from sidecar.sandbox.lago.fields import Fields, decimal_of, parse_instant
from sidecar.sandbox.lago.lago_wire import Refusal


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (5, Decimal(5)), ("5.50", Decimal("5.5")), (0.25, Decimal("0.25")), ("1e3", Decimal(1000)), (" 7 ", Decimal(7)),
        (True, None), (None, None), ("", None), ("NaN", None), ("Infinity", None), ("1_000", None), ("x", None),
        ("9" * 41, None), ("1e99", None), ([1], None),
    ],
)  # fmt: skip
def test_numbers_are_read_from_numbers_and_text_and_nothing_else(given: object, number: Decimal | None) -> None:
    assert decimal_of(given) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-10T12:00:00Z", datetime(2025, 6, 10, 12, tzinfo=UTC)),
        ("2025-06-10T12:00:00+02:00", datetime(2025, 6, 10, 10, tzinfo=UTC)),
        ("2025-06-10T12:00:00", datetime(2025, 6, 10, 12, tzinfo=UTC)),
        ("2025-06-10", datetime(2025, 6, 10, tzinfo=UTC)),
        ("1749556800", None),
        ("soon", None),
        ("2" * 65, None),
        ("9999-12-31T23:59:59-10:00", None),
    ],
)
def test_instants_are_iso_8601(text: str, expected: datetime | None) -> None:
    assert parse_instant(text) == expected


@pytest.mark.parametrize(
    ("read", "value", "codes"),
    [
        (lambda fields: fields.required("x"), None, ["value_is_mandatory"]),
        (lambda fields: fields.required("x"), "  ", ["value_is_mandatory"]),
        (lambda fields: fields.text("x"), ["a"], ["value_is_invalid"]),
        (lambda fields: fields.text("x"), "a" * 1025, ["value_is_too_long"]),
        (lambda fields: fields.choice("x", ("a", "b")), "c", ["value_is_invalid"]),
        (lambda fields: fields.integer("x"), "1.5", ["value_is_invalid"]),
        (lambda fields: fields.integer("x", low=0), -1, ["value_is_invalid"]),
        (lambda fields: fields.integer("x"), 2**63, ["value_is_invalid"]),
        (lambda fields: fields.amount("x"), 5, ["invalid_amount"]),
        (lambda fields: fields.amount("x"), "-5", ["invalid_amount"]),
        (lambda fields: fields.number("x"), "five", ["value_is_invalid"]),
        (lambda fields: fields.instant("x"), 17, ["invalid_date"]),
        (lambda fields: fields.timezone("x"), "Mars/Base", ["value_is_invalid"]),
        (lambda fields: fields.timezone("x"), "../../etc/passwd", ["value_is_invalid"]),
        (lambda fields: fields.texts("x"), [1], ["value_is_invalid"]),
        (lambda fields: fields.objects("x"), ["a"], ["value_is_invalid"]),
        (lambda fields: fields.objects("x"), [{}] * 1001, ["value_is_invalid"]),
        (lambda fields: fields.object("x"), [], ["value_is_invalid"]),
    ],
)
def test_a_bad_value_is_noted_with_its_field(read: Callable[[Fields], object], value: object, codes: list[str]) -> None:
    fields = Fields({"x": value})
    read(fields)
    assert fields.errors == {"x": codes}
    with pytest.raises(Refusal) as caught:
        fields.check()
    assert caught.value.status == 422
    assert caught.value.body["error_details"] == {"x": codes}


def test_good_values_are_read_and_nothing_is_noted() -> None:
    fields = Fields({"a": "1.50", "b": "7", "c": "true", "d": ["x", "y", "x"], "e": "Europe/Paris", "f": 12})
    assert (fields.amount("a"), fields.integer("b"), fields.boolean("c")) == (Decimal("1.5"), 7, True)
    assert (fields.texts("d"), fields.timezone("e"), fields.text("f")) == (("x", "y"), "Europe/Paris", "12")
    assert (fields.amount("z"), fields.integer("z", 3), fields.boolean("z")) == (None, 3, False)
    fields.check()
