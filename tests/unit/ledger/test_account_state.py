"""Accounts as they are stored: what can be read of them, and what cannot."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ledger.accounts.account_about import About, packed_view
from sidecar.ledger.accounts.account_spec import AccountSpec, RateLimits, Status, SubscriptionSpec
from sidecar.ledger.accounts.account_state import FIELDS, AccountState, ClosedUsage, Share, Usage, decode_account
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.accounts.periods import EqualPeriods
from sidecar.ledger.accounts.state_values import StateValues
from sidecar.ledger.client.outcomes import AccountView
from sidecar.ledger.pricing.price_tables import MAX_INT, Package, Standard

SPEC = AccountSpec("tpp-1", "prepaid", "GBP", EqualPeriods(1000), {"api_calls": Standard(Decimal(1))}, funds=Decimal(5))
ABOUT = About({"funds": "5"}, ("ab" * 32,), Status.SUSPENDED)
STATE = StateValues(
    terms=[4, 1, 500, 1, 0, 0, 0, 7],
    subscriptions=[["", 100, 200], ["sub-2", 50, 300]],
    counters=[
        [1, "api_calls", 0, 0, 9, 0, 2, 400, 3, 5, 1],
        [2, "sms", 1, 1, 0, 0, 0, 401, 6, 1, 2],
        [1, "files", 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ],
    limits=[11, 12, 13, 14],
    shares=[[1025, 1, 2], [1025, 2, 1], [2049, 1, 3]],
)
PRICES: list[Any] = [{"api_calls": ["s", 2]}, {"files": ["g", 5, 1, 10, MAX_INT, 2, 0]}, {"sms": ["p", 4, 1, 9]}, []]
CLOSED = [10, "", "api_calls", 3, 6, 20, "sub-2", "sms", 0, 1]


def decoded(**changes: Any) -> AccountState:
    """The account as read; what is not bytes is packed."""
    parts: dict[str, Any] = {
        "state": STATE.packed(), "prices": PRICES, "periods": [[300, 100, 1], []], "closed": CLOSED, "digits": b"2",
        "view": packed_view(SPEC, 2), "about": ABOUT.packed(), "fence": b"9",
    } | changes  # fmt: skip
    fields = [
        value if value is None or isinstance(value, bytes) else msgpack.packb(value, use_bin_type=False)
        for value in (parts[name] for name in FIELDS)
    ]
    return decode_account("tpp-1", parts["state"], fields)


def test_all_that_is_stored_is_read() -> None:
    state = decoded()

    assert (state.version, state.status, state.ceiling, state.counts_unsettled) == (4, Status.SUSPENDED, 500, True)
    assert (state.unsettled, state.digits, state.currency, state.mode, state.fence) == (7, 2, "GBP", "prepaid", 9)
    assert state.about == ABOUT
    assert state.closed == (ClosedUsage(10, "api_calls", 3, 6), ClosedUsage(20, "sms", 0, 1, "sub-2"))
    first, second = state.subscriptions
    assert (first.name, first.start_ms, first.end_ms, first.next_ends_ms) == ("", 100, 200, (300, 400))
    assert (second.name, second.start_ms, second.end_ms, second.next_ends_ms) == ("sub-2", 50, 300, ())
    assert first.usages == (
        Usage("api_calls", 3, 5, 0, 400, 1, (Share(1025, 2), Share(2049, 3))), Usage("files", 0, 0)
    )  # fmt: skip
    assert second.usages == (Usage("sms", 6, 1, 1, 401, 2, (Share(1025, 1),)),)
    assert (second.prices, second.former_prices) == ({"sms": ["p", 4, 1, 9]}, {})
    assert state.usages == first.usages
    assert (state.period_start_ms, state.period_end_ms, state.next_ends_ms) == (100, 200, (300, 400))
    assert (state.prices, state.former_prices) == (first.prices, first.former_prices)


def test_reserved_money_is_that_of_all_subscriptions() -> None:
    state = decoded()

    # 8 calls for 2 each, 10 as soon as there are files, and two packages of 4 sms after one that is free.
    assert (state.reserved(), state.available()) == (16 + 10 + 18, 500 - 44 - 7)


def test_an_account_that_the_ledger_does_not_have_is_one_of_version_0() -> None:
    state = decode_account("tpp-1", None, [None] * len(FIELDS))

    assert (state.version, state.period_end_ms, state.usages, state.closed) == (0, MAX_INT, (), ())
    assert state.rolled_over(10**13) is state


def test_counts_without_terms_are_read() -> None:
    state = StateValues(counters=[[1, "sms", 0, 1, 0, 0, 0, 400, 6, 0, 6]])
    found = decode_account("tpp-1", state.packed(), [None] * len(FIELDS))

    assert (found.version, found.usages) == (0, (Usage("sms", 6, 0, 0, 400, 6),))


def with_value(part: str, row: int, at: int, value: Any) -> bytes:
    """The state with another value in one row of a part."""
    rows = [list(each) for each in getattr(STATE, part)]
    rows[row][at] = value
    return replace(STATE, **{part: rows}).packed()


def with_term(at: int, value: Any) -> bytes:
    terms = [*STATE.terms]
    terms[at] = value
    return replace(STATE, terms=terms).packed()


def with_counts(subscriptions: Any, counters: Any) -> bytes:
    """A state that says to have so many of each."""
    return b"\0\0\0" + b"".join(map(msgpack.packb, [*STATE.terms, subscriptions, counters, "", 100, 200, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": b""},
        {"state": b"\xff\xff"},
        {"state": b"\0\0\0"},
        {"state": b"\0\0\0{}"},
        {"state": b"\0\0\0\x80"},
        {"state": STATE.packed()[:-1]},
        {"state": STATE.packed()[:-9]},
        {"state": STATE.packed() + b"\0"},
        {"state": with_term(0, 1.5)},
        {"state": with_term(0, True)},
        {"state": with_term(1, 3)},
        {"state": with_term(2, "5")},
        {"state": with_term(7, 2**53)},
        {"state": with_counts(0, 0)},
        {"state": with_counts(99, 0)},
        {"state": with_counts(1, -1)},
        {"state": with_counts("", 0)},
        {"state": replace(STATE, shares=[*STATE.shares, [1025, 4, 1]]).packed()},
        {"state": with_value("subscriptions", 0, 0, 5)},
        {"state": with_value("subscriptions", 0, 2, 100)},
        {"state": with_value("subscriptions", 0, 1, -1)},
        {"state": with_value("counters", 0, 0, 3)},
        {"state": with_value("counters", 0, 0, 0)},
        {"state": with_value("counters", 0, 8, -1)},
        {"state": with_value("shares", 0, 2, -1)},
        {"prices": {"api_calls": ["s", 1]}},
        {"prices": [["s", 1]]},
        {"prices": [{"api_calls": ["x", 1]}]},
        {"prices": [{"api_calls": ["s"]}]},
        {"prices": [{"api_calls": ["p", 0, 0, 1]}]},
        {"prices": [{"api_calls": ["g", 5, 1, 1]}]},
        {"prices": [{"api_calls": ["v", MAX_INT, 1]}]},
        {"prices": [{"api_calls": ["s", -1]}]},
        {"prices": [{"api_calls": 1}]},
        {"periods": [1]},
        {"periods": [["a"]]},
        {"closed": [1, "", "sms", 2]},
        {"closed": [1, 2, "sms", 2, 3]},
        {"digits": None},
        {"digits": b"x"},
        {"digits": b"13"},
        {"view": None},
        {"view": b"\x91\x02"},
        {"view": [2, 1, "prepaid", "0", 0, 0, 0, True]},
        {"about": None},
        {"about": []},
        {"about": [None, {}, b"short"]},
        {"about": ["gone", {}]},
        {"about": [None, [1]]},
        {"about": [None, {9: "1"}]},
        {"about": [None, {"funds": "1"}]},
        {"fence": b"x"},
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_account(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedAccount, match="account 'tpp-1' cannot be read from the ledger: "):
        decoded(**changes)


@given(st.binary(max_size=80), st.sampled_from(("state", *FIELDS)))
def test_bytes_of_any_kind_are_read_or_refused(packed: bytes, name: str) -> None:
    with suppress(MalformedAccount):
        decoded(**{name: packed})


DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    st.dictionaries(st.sampled_from(["funds", "overdraft", "credit_limit"]), st.decimals(allow_nan=False).map(str)),
    st.lists(DIGESTS).map(tuple),
    st.sampled_from([None, *Status]),
)
def test_what_is_packed_about_an_account_is_unpacked_again(
    amounts: dict[str, str], api_keys: tuple[str, ...], by_operator: Status | None
) -> None:
    about = About(amounts, api_keys, by_operator)
    assert About.unpacked(about.packed()) == about


def test_what_is_packed_about_an_account_with_a_key_fits_into_a_small_hash() -> None:
    """Valkey keeps one whose values have at most 64 bytes as a list: a third of the memory."""
    assert len(About({"funds": "1000000000.00"}, ("ab" * 32,), Status.SUSPENDED).packed()) <= 64


@pytest.mark.parametrize(
    ("spec", "view"),
    [
        (SPEC, AccountView(3, 2, "GBP", "prepaid", 0.0, 0, 0, 500)),
        (
            AccountSpec(
                "tpp-1", "overage", "JPY", EqualPeriods(1000), SPEC.prices, spending_cap=Decimal(9),
                limits=RateLimits(Decimal("0.5"), 0, 10),
                further_subscriptions=(
                    SubscriptionSpec("sub-2", EqualPeriods(1000), {"sms": Package(Decimal(4), 100)}),
                ),
            ),
            AccountView(3, 2, "JPY", "overage", 0.5, 1, 10, 900, constant_prices=False),
        ),
        (
            AccountSpec("tpp-1", "postpaid", "GBP", EqualPeriods(1000), {}),
            AccountView(3, 2, "GBP", "postpaid", 0.0, 0, 0, 0),
        ),
        (
            AccountSpec("tpp-1", "prepaid", "GBP", EqualPeriods(1000), {}, funds=Decimal(-1)),
            AccountView(3, 2, "GBP", "prepaid", 0.0, 0, 0, 0),
        ),
    ],
)  # fmt: skip
def test_a_gateway_s_view_is_what_the_loader_packed(spec: AccountSpec, view: AccountView) -> None:
    assert AccountView.from_view(3, packed_view(spec, 2)) == view


def test_a_view_of_a_later_release_may_say_more() -> None:
    more = msgpack.packb([*msgpack.unpackb(packed_view(SPEC, 2)), "more"])

    assert AccountView.from_view(3, more) == AccountView.from_view(3, packed_view(SPEC, 2))
    assert decoded(view=more).currency == "GBP"


def test_two_subscriptions_of_one_name_are_a_caller_s_fault() -> None:
    with pytest.raises(AssertionError, match="subscriptions of account tpp-1 with the same name"):
        AccountSpec(
            "tpp-1", "prepaid", "GBP", EqualPeriods(1000), {},
            further_subscriptions=(SubscriptionSpec("", EqualPeriods(1000), {}),),
        )  # fmt: skip
