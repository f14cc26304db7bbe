"""Numbers and times of answers are read exactly, or refused with the place where they stood."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.lago.errors import LagoMalformed
from sidecar.billing.lago.json_fields import CENTS_MAX, Fields, instant_ms_of, number_of, whole_number_of

AMOUNTS = st.decimals(
    min_value=Decimal(-CENTS_MAX), max_value=Decimal(CENTS_MAX), allow_nan=False, allow_infinity=False, places=5
)
MOMENTS = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9998, 1, 1))


def fields(**values: Any) -> Fields:
    return Fields(values, "GET /wallets", "wallets[3]")


@given(AMOUNTS)
def test_a_decimal_is_the_same_as_a_number_of_json_and_as_a_text(amount: Decimal) -> None:
    text = f"{amount:f}"
    assert number_of(text) == amount
    assert number_of(json.loads(text, parse_float=Decimal)) == amount


@given(st.text(alphabet="0123456789.eE+-_ ,xNaInf\u0661", max_size=12))
def test_a_text_that_is_taken_for_a_number_is_that_number_in_plain_digits(text: str) -> None:
    found = number_of(text)
    assert found is None or (found == Decimal(text) and set(text) <= set("0123456789.eE+-"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1_000",
        "1,5",
        "0x10",
        "NaN",
        "Infinity",
        "-",
        ".5",
        "5.",
        "+1",
        "١",
        "1e5000",
        "1" * 65,
        "0" * 65,
    ],
)
def test_what_only_looks_like_a_number_is_none(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize("value", [True, None, [], {}, Decimal("NaN"), Decimal("Infinity"), Decimal("1E+999999999")])
def test_nothing_else_is_a_number(value: object) -> None:
    assert number_of(value) is None


@pytest.mark.parametrize("largest", [CENTS_MAX, -CENTS_MAX, str(CENTS_MAX), Decimal(CENTS_MAX), "1e18"])
def test_ten_to_the_eighteenth_is_the_most(largest: Any) -> None:
    assert abs(number_of(largest) or 0) == CENTS_MAX
    beyond = str(largest)[:-1] + "9" if "e" in str(largest) else int(largest) + (1 if int(largest) > 0 else -1)
    assert number_of(beyond) is None
    assert number_of(str(beyond)) is None
    assert number_of(Decimal(beyond)) is None


@given(st.integers(min_value=-CENTS_MAX, max_value=CENTS_MAX))
def test_cents_may_come_as_a_whole_decimal_or_as_a_text(cents: int) -> None:
    assert {whole_number_of(cents), whole_number_of(Decimal(f"{cents}.0")), whole_number_of(str(cents))} == {cents}


@pytest.mark.parametrize("value", [Decimal("10.5"), "10.5", True, "ten", 10**18 + 1])
def test_a_part_of_a_cent_is_no_whole_number(value: object) -> None:
    assert whole_number_of(value) is None


@given(
    MOMENTS, st.integers(min_value=-14 * 60, max_value=14 * 60), st.sampled_from(["auto", "seconds", "milliseconds"])
)
def test_a_time_is_the_same_instant_with_any_offset_and_precision(
    moment: datetime, minutes: int, precision: str
) -> None:
    there = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    exact_ms = (moment - datetime(1970, 1, 1)) // timedelta(milliseconds=1)
    expected = exact_ms // 1000 * 1000 if precision == "seconds" else exact_ms
    assert instant_ms_of(there.isoformat(timespec=precision)) == expected


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-08-01T00:10:09Z", 1785543009000),
        ("2026-08-01T00:10:09.123Z", 1785543009123),
        ("2026-08-01T02:10:09.123456789+02:00", 1785543009123),
        ("2026-08-01 00:10:09", 1785543009000),
        ("2026-08-01T00:10:09.1Z", 1785543009100),
        ("2026-08-01T00:10:09+0000", 1785543009000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times_are_read_as_lago_writes_them(text: str, ms: int) -> None:
    assert instant_ms_of(text) == ms


@pytest.mark.parametrize(
    "value",
    [
        "2026-08-01", "00:10:09", "2026-13-01T00:00:00Z", "2026-08-01T24:00:01Z", "1969-12-31T23:59:59Z", "yesterday",
        "2026-08-01T00:10:09Z; drop", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00x", 1785543009, None, "",
        "٢٠٢٦-08-01T00:10:09Z",
    ],
)  # fmt: skip
def test_what_is_no_time_is_none(value: object) -> None:
    assert instant_ms_of(value) is None


@pytest.mark.parametrize("last", ["2026-07-31T23:59:59Z", "2026-07-31T23:59:59.999Z", "2026-07-31T23:59:59.001Z"])
def test_a_period_ends_when_the_second_that_is_named_last_is_over(last: str) -> None:
    assert fields(to=last).end_ms("to") == instant_ms_of("2026-08-01T00:00:00Z")


@pytest.mark.parametrize(
    ("read", "values", "says"),
    [
        (lambda f: f.whole("balance_cents"), {"balance_cents": "abc"}, "wallets[3].balance_cents"),
        (lambda f: f.whole("balance_cents"), {"balance_cents": 10**18 + 1}, "wallets[3].balance_cents"),
        (lambda f: f.whole("balance_cents"), {}, "wallets[3].balance_cents is not a whole number: it is missing"),
        (lambda f: f.number("rate"), {"rate": None}, "wallets[3].rate is not a number: it is missing"),
        (lambda f: f.text("status"), {"status": 5}, "wallets[3].status is not a text"),
        (lambda f: f.text("status"), {"status": "x" * 70_000}, "wallets[3].status is not a text of at most 65536"),
        (lambda f: f.flag("on"), {"on": "yes"}, "wallets[3].on is not true or false"),
        (lambda f: f.instant_ms("at"), {"at": "2026"}, "wallets[3].at is not a time"),
        (lambda f: f.row("item"), {"item": []}, "wallets[3].item is not an object: it is a list"),
        (lambda f: f.rows("fees"), {"fees": [{}, 1]}, "wallets[3].fees[1] is not an object: it is 1"),
        (lambda f: f.rows("fees"), {"fees": {}}, "wallets[3].fees is not a list"),
        (lambda f: f.listed("fees"), {"fees": None}, "wallets[3].fees is not a list: it is missing"),
        (lambda f: f.texts("codes"), {"codes": ["a", 1]}, "wallets[3].codes is not a list of texts"),
        (lambda f: f.row("item").text("type"), {"item": {}}, "wallets[3].item.type is not a text: it is missing"),
        (lambda f: f.properties("p"), {"p": []}, "wallets[3].p is not an object"),
        (lambda f: f.properties("p"), {"p": {"a": [10**19]}}, "wallets[3].p.a[0] is not a number"),
        (lambda f: f.whole("big"), {"big": 10**5000}, "it is a very large number"),
    ],
)
def test_a_wrong_field_is_named_with_endpoint_and_path(read: Any, values: dict[str, Any], says: str) -> None:
    with pytest.raises(LagoMalformed) as refused:
        read(fields(**values))
    assert str(refused.value).startswith("GET /wallets: ")
    assert says in str(refused.value)
    assert not refused.value.transient
    assert len(str(refused.value)) < 400


def test_properties_keep_their_shape_and_have_no_float() -> None:
    kept = fields(p={"a": 1, "b": [Decimal("0.1"), "x", None, True], "c": {"d": "1.50"}}).properties("p")
    assert kept == {"a": Decimal(1), "b": [Decimal("0.1"), "x", None, True], "c": {"d": "1.50"}}
    assert isinstance(kept["a"], Decimal)
    assert kept["b"][3] is True


def test_properties_may_not_be_nested_without_end() -> None:
    nested: Any = {}
    for _ in range(20):
        nested = {"a": nested}
    with pytest.raises(LagoMalformed, match="nested at most 16 deep"):
        fields(p=nested).properties("p")


def test_an_answer_that_is_no_object_is_refused() -> None:
    with pytest.raises(LagoMalformed, match="the answer is not an object: it is a list"):
        Fields([], "GET /taxes")
