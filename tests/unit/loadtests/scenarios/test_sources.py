"""How usage events are read from Valkey, by a client that answers from lists."""

from __future__ import annotations

from typing import Any, cast

import msgpack
import orjson
import redis

from loadtests.scenarios.reconciliation import Account, Events, UsageEvent
from loadtests.scenarios.sources import account_by_valkey, read_events
from sidecar.ledger.accounts.account_about import About
from sidecar.ledger.accounts.state_values import StateValues
from sidecar.ledger.keys import Keys

KEYS = Keys()
OUTBOX, SENT, DEAD = KEYS.outbox(3), KEYS.sent(3), KEYS.dead_letters(3)
Entry = tuple[bytes, dict[bytes, bytes]]


def entry(id_: str, seq: int, *accounts: str, at_ms: int = 2_000) -> Entry:
    """An entry as ``batch.lua`` writes it, with one event of two units for each account."""
    events = [[account, "api_calls", 2, "/a", "GET", 200, 1, None, None] for account in accounts]
    return id_.encode(), {b"o": b"i.p03", b"q": b"%d" % seq, b"t": b"%d" % at_ms, b"e": orjson.dumps(events)}


class Streams:
    """Answers XRANGE in pages of two, whatever it is asked for."""

    def __init__(self, **streams: list[Entry]) -> None:
        self._streams = {
            OUTBOX: streams.get("outbox", []),
            SENT: streams.get("sent", []),
            DEAD: streams.get("dead", []),
        }

    def xrange(self, stream: str, min: str | bytes, count: int) -> list[Entry]:
        after = min[1:] if isinstance(min, bytes) else b""
        return [each for each in self._streams.get(stream, []) if each[0] > after][:2]


def read(since_ms: int = 1_000, **streams: list[Entry]) -> Events:
    return read_events(cast(redis.Redis, Streams(**streams)), since_ms, frozenset({"tpp"}))


def event(seq: int, number: int = 0) -> UsageEvent:
    return UsageEvent(f"i.p03.{seq}.{number}", "tpp", 2)


def test_waiting_and_accepted_events_are_read_to_the_end_with_the_ids_that_openmeter_sees() -> None:
    found = read(outbox=[entry(f"{n}-0", n, "tpp") for n in (1, 2, 3)], sent=[entry("9-0", 4, "tpp", "tpp")])
    assert found == Events((event(1), event(2), event(3)), (event(4, 0), event(4, 1)))


def test_an_entry_that_moved_while_it_was_read_counts_once_where_it_went() -> None:
    found = read(outbox=[entry("1-0", 1, "tpp"), entry("2-0", 2, "tpp")], sent=[entry("9-0", 1, "tpp")])
    assert found == Events((event(2),), (event(1),))


def test_the_same_id_in_two_entries_of_the_tail_stays_twice_for_the_check_to_find() -> None:
    assert read(sent=[entry("1-0", 1, "tpp"), entry("2-0", 1, "tpp")]).accepted == (event(1), event(1))


def test_events_of_others_and_from_before_the_run_are_left_out() -> None:
    found = read(
        outbox=[entry("1-0", 1, "other", "tpp"), entry("2-0", 2, "tpp", at_ms=999)], dead=[entry("3-0", 3, "tpp")]
    )
    assert found == Events((event(1, 1),), (), dead=1)


def test_the_ledger_in_valkey_is_read_over_all_metrics() -> None:
    state = StateValues(
        terms=[1, 0, False, 0, 0, 0, 0, 0],
        subscriptions=[["", 11, 12]],
        counters=[[1, "api_calls", 0, 1, 0, 0, 0, 0, 7, 1, 0], [1, "payments", 0, 1, 0, 0, 0, 0, 5, 2, 0]],
    )
    stored = {
        "digits": b"2",
        "view": msgpack.packb([2, "GBP", "postpaid", "0", 0, 0, 0, True]),
        "about": About().packed(),
    }

    class Accounts:
        def get(self, key: str) -> bytes:
            assert key == KEYS.state("tpp")
            return state.packed()

        def hmget(self, key: str, *fields: str) -> Any:
            assert key == KEYS.account("tpp")
            return [stored.get(field) for field in fields]

    assert account_by_valkey(cast(redis.Redis, Accounts()), "tpp") == Account(settled=12, held=3, period_start_ms=11)
