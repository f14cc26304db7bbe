from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.usage_sync.period_links import LINK_BYTES_MAX, SyncAccount, decode_link, encode_link
from tests.unit.billing.usage_sync.kit import HOUR, T0, link

LINK = link(T0, T0 + HOUR, metrics=("api_calls", "pay:ments"), is_final=True, is_current=False)


def test_a_link_is_read_as_it_was_written() -> None:
    assert decode_link(encode_link(LINK)) == LINK
    assert decode_link(encode_link(LINK).encode()) == LINK


def test_members_of_later_versions_are_passed_over() -> None:
    row = orjson.loads(encode_link(LINK)) | {"later": 1}
    assert decode_link(orjson.dumps(row)) == LINK


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ledger_start_ms", None),
        ("ledger_start_ms", "1"),
        ("ledger_start_ms", True),
        ("ledger_start_ms", 1),
        ("ledger_end_ms", 0),
        ("subscription_id", 5),
        ("lago_to_ms", 0),
        ("metrics", "api_calls"),
        ("metrics", [1]),
        ("metrics", ["a"] * 1_001),
        ("is_final", 0),
        ("is_current", None),
    ],
)
def test_what_is_no_link_is_refused(name: str, value: object) -> None:
    row = orjson.loads(encode_link(LINK)) | {name: value}
    with pytest.raises(ValueError):
        decode_link(orjson.dumps(row))


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"{}", b" " * (LINK_BYTES_MAX + 1)])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_link(data)


def test_a_wanted_second_within_lagos_bounds_is_taken_as_it_is() -> None:
    assert LINK.instant_within(T0 + 5) == T0 + 5
    assert LINK.instant_within(T0) == T0


def test_a_second_outside_of_lagos_bounds_becomes_the_nearest_within() -> None:
    started = replace(LINK, lago_from_ms=T0 * 1000 + 123, lago_to_ms=(T0 + 100) * 1000 + 456)
    assert started.instant_within(T0) == T0 + 1
    assert started.instant_within(T0 + 5000) == T0 + 100
    assert replace(LINK, lago_to_ms=(T0 + 100) * 1000).instant_within(T0 + 100) == T0 + 99


def test_a_period_between_two_whole_seconds_takes_its_first_instant() -> None:
    short = replace(LINK, lago_from_ms=T0 * 1000 + 123, lago_to_ms=T0 * 1000 + 456)
    assert short.instant_within(T0 + 5) == Decimal(f"{T0}.123")


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(-5, 25))
def test_an_instant_always_lies_in_lagos_period(from_ms: int, length_ms: int, wanted_s: int) -> None:
    each = replace(LINK, lago_from_ms=T0 * 1000 + from_ms, lago_to_ms=T0 * 1000 + from_ms + length_ms)
    assert each.lago_from_ms <= each.instant_within(T0 + wanted_s) * 1000 < each.lago_to_ms


def test_the_current_period_of_a_metric_is_the_open_one_that_charges_it() -> None:
    old = link(T0, T0 + HOUR, is_current=False)
    other = link(T0 + HOUR, T0 + 2 * HOUR, sub="s2", metrics=("payments",))
    final = link(T0 + HOUR, T0 + 2 * HOUR, sub="s3", is_final=True)
    now = link(T0 + HOUR, T0 + 2 * HOUR, sub="s4")
    assert SyncAccount("tpp-1", (old, other, final, now)).current("api_calls") == now
    assert SyncAccount("tpp-1", (old, other, final)).current("api_calls") is None


def test_a_link_of_a_release_with_one_period_is_of_the_subscription_without_a_name() -> None:
    row = orjson.loads(encode_link(LINK))
    del row["ledger_subscription"]
    assert decode_link(orjson.dumps(row)).key == (T0 * 1000, "")


def test_an_invoiced_period_says_nothing_of_another_that_began_with_it() -> None:
    first = link(T0, T0 + HOUR)
    second = replace(link(T0, T0 + HOUR, sub="s2", metrics=("payments",)), ledger_subscription="sub-2")
    account = SyncAccount("tpp-1", (first, second), {first.key: {"api_calls": 5}})
    assert account.charged(first, "api_calls") == 5
    assert account.charged(replace(second, is_final=True), "payments") is None, "nobody knows"
