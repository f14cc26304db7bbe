"""What is foretold of an account whose periods have ended is what the scripts store, for any state of it."""

from __future__ import annotations

from typing import Any

import msgpack
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.ledger.accounts.account_about import About
from sidecar.ledger.accounts.account_state import FIELDS, AccountState, decode_account
from sidecar.ledger.accounts.state_values import StateValues, pack_ends
from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.pricing.price_tables import MAX_INT
from sidecar.valkey.scripts import script
from tests.support.ledger_driver import account_keys
from tests.support.ledger_state import pack

HOUR_MS = 3_600_000
METRICS = ("api_calls", "files", "sms", "payments")
KEYS = Keys()
STATE, HASH = account_keys(KEYS, "tpp-1")
META, CLOCK = KEYS.meta(KEYS.partition("tpp-1")), KEYS.clock(KEYS.partition("tpp-1"))

AMOUNTS = st.one_of(st.integers(0, 9), st.integers(0, MAX_INT))
UNITS = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, MAX_INT))


@st.composite
def tables(draw: st.DrawFn) -> list[Any]:
    model = draw(st.sampled_from("sgvp"))
    if model == "s":
        return ["s", draw(AMOUNTS)]
    if model == "p":
        return ["p", draw(st.integers(1, 9)), draw(st.integers(0, 9)), draw(AMOUNTS)]
    bounds = [*sorted(draw(st.sets(st.integers(1, 30), max_size=3))), MAX_INT]
    return [model, *(value for to in bounds for value in (to, draw(AMOUNTS), draw(AMOUNTS)))]


@st.composite
def accounts(draw: st.DrawFn, subscriptions: int) -> dict[str, Any]:
    """Fields of an account, packed later; instants are hours from now, and none of them is near now."""
    bounds, periods, prices, counters = [], [], [], []
    for k in range(subscriptions):
        start = draw(st.integers(-200, 3))
        ends = [start]
        for _ in range(draw(st.integers(1, 4))):
            ends.append(ends[-1] + draw(st.integers(1, 40)))
        bounds.append((f"sub-{k}" if k else "", start, ends[1]))
        # A loader that knew little leaves ends that are over.
        periods.append(sorted({*ends[2:], *draw(st.lists(st.integers(-220, start), max_size=1))}))
        live = draw(st.dictionaries(st.sampled_from(METRICS), tables()))
        former = draw(st.dictionaries(st.sampled_from(sorted({*METRICS} - {*live})), tables())) if len(live) < 4 else {}
        prices += [live, former]
        counted = draw(st.sets(st.sampled_from(METRICS))) | former.keys()
        counters += [(k + 1, metric) for metric in sorted(counted)]
    counters = draw(st.permutations(counters))
    shares = []
    if counters:
        share = st.tuples(st.integers(1, 5000), st.integers(1, len(counters)), st.integers(1, 99))
        shares = draw(st.lists(share, max_size=4, unique_by=lambda each: each[:2]))
    rows = []
    for number, (k, metric) in enumerate(counters, start=1):
        held = sum(units for _, counter, units in shares if counter == number)
        hour, hour_units = draw(st.sampled_from([(0, 0), (490_000, 0), (490_000, 7)]))
        rows.append([k, metric, draw(st.integers(0, 5)), 1, 0, 0, 0, hour, draw(UNITS), held, hour_units])
    closed = draw(st.lists(st.sampled_from([(5, "", "sms", 3, 9), (7, "sub-1", "files", 0, MAX_INT)]), max_size=2))
    older = draw(st.one_of(st.integers(-99, 99), st.integers(0, MAX_INT)))
    return {"bounds": bounds, "periods": periods, "prices": prices, "counters": rows, "shares": shares,
            "closed": [value for row in closed for value in row], "older": older}  # fmt: skip


def store(client: redis.Redis, account: dict[str, Any], now_ms: int) -> None:
    at_ms = now_ms + HOUR_MS // 2
    bounds = [(name, at_ms + start * HOUR_MS, at_ms + end * HOUR_MS) for name, start, end in account["bounds"]]
    terms = [3, 0, 5000, 1, 0, 0, 0, account["older"]]
    state = StateValues(terms, bounds, account["counters"], shares=account["shares"])
    periods = [pack_ends([at_ms + end * HOUR_MS for end in ends]) for ends in account["periods"]]
    fields = {
        "prices": pack(account["prices"]),
        "periods": pack(periods),
        "closed": pack(account["closed"]),
        "digits": b"2",
        "view": msgpack.packb([2, "GBP", "prepaid", "0", 0, 0, 5000, False]),
        "about": About().packed(),
    }
    client.set(STATE, state.packed())
    client.delete(HASH)
    client.hset(HASH, mapping=fields)  # type: ignore[arg-type]


def read(client: redis.Redis) -> AccountState:
    state: Any = client.get(STATE)
    fields: Any = client.hmget(HASH, *FIELDS)
    return decode_account("tpp-1", state, fields)


def check(client: redis.Redis, account: dict[str, Any]) -> None:
    client.set(CLOCK, pack(FORMAT) + pack(0))
    seconds, _ = client.time()  # type: ignore[misc]
    now_ms = seconds * 1000
    store(client, account, now_ms)
    before = read(client)

    # It rolls over and, as no process has departed, does nothing else.
    client.eval(script("give_back").text.decode(), 4, META, CLOCK, STATE, HASH)

    after = read(client)
    assert after == before.rolled_over(now_ms)
    assert after.rolled_over(now_ms) is after


@given(account=accounts(subscriptions=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_one_subscription(valkey: redis.Redis, account: dict[str, Any]) -> None:
    check(valkey, account)


@given(account=accounts(subscriptions=2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_of_two_subscriptions(valkey: redis.Redis, account: dict[str, Any]) -> None:
    check(valkey, account)
