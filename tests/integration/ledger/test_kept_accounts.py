"""What the function keeps unpacked from call to call is never taken for what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from sidecar.ledger.accounts.state_values import unpack_state
from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import Code, Group, LedgerError
from tests.reference.pricing import MAX_INT
from tests.support.ledger_driver import HOME, RealLedger, account_keys, call_batch, one_group, text_of
from tests.support.ledger_state import pack, state_values

KEPT_MAX = 1500


@pytest.fixture
def stored(real_ledger: LedgerFixture) -> redis.Redis:
    assert isinstance(real_ledger.backend, RealLedger)
    return real_ledger.backend.client


def key_of(ledger: LedgerFixture, account: str = "tpp") -> str:
    assert isinstance(ledger.backend, RealLedger)
    return ledger.backend.keys.account(account)


def state_key_of(ledger: LedgerFixture, account: str = "tpp") -> str:
    assert isinstance(ledger.backend, RealLedger)
    return ledger.backend.keys.state(account)


def test_a_call_that_ends_in_an_error_leaves_nothing_behind(real_ledger: LedgerFixture, stored: redis.Redis) -> None:
    real_ledger.load(ceiling=10)
    real_ledger.load("other")
    real_ledger.hold(1)
    stored.hset(key_of(real_ledger, "other"), "prices", pack([{"api_calls": ["unheard of", 1]}, {}]))
    for _ in range(3):
        with pytest.raises(LedgerError, match=r"ACCOUNT 2 .*unknown model"):
            real_ledger.send("gw", Group.of("tpp", hold=(4,)), Group.of("other", hold=(1,)))
    assert real_ledger.held_units() == 1
    assert real_ledger.hold(9).code == Code.GRANTED, "the failed calls took nothing"


def test_a_state_that_was_put_back_counts(real_ledger: LedgerFixture, stored: redis.Redis) -> None:
    real_ledger.load(ceiling=10)
    before: Any = stored.get(state_key_of(real_ledger))
    real_ledger.hold(10)
    assert real_ledger.hold(1).code == Code.CREDIT
    stored.set(state_key_of(real_ledger), before)
    assert real_ledger.hold(10).code == Code.GRANTED


def test_an_account_that_is_gone_is_unknown_and_one_that_returns_begins_anew(
    real_ledger: LedgerFixture, stored: redis.Redis
) -> None:
    real_ledger.load(ceiling=10)
    real_ledger.hold(10)
    stored.delete(state_key_of(real_ledger), key_of(real_ledger))
    assert real_ledger.hold(1).code == Code.UNKNOWN
    stored.delete(state_key_of(real_ledger), key_of(real_ledger))
    real_ledger.load(ceiling=10)
    assert real_ledger.hold(10).code == Code.GRANTED


def test_more_accounts_than_are_kept(real_ledger: LedgerFixture) -> None:
    accounts = [f"tpp-{number}" for number in range(KEPT_MAX + 100)]
    for account in accounts:
        real_ledger.load(account, ceiling=2)
    for expected in (Code.GRANTED, Code.GRANTED, Code.CREDIT):
        for at in range(0, len(accounts), 500):
            reply = real_ledger.send("gw", *(Group.of(account, hold=(1,)) for account in accounts[at : at + 500]))
            assert {group.outcomes[0].code for group in reply.groups if group is not None} == {expected}


FEW_KEPT = "local KNOWN_MAX = 1500", "local KNOWN_MAX = 20"


def test_what_is_kept_is_bounded_though_a_call_has_more_accounts_and_the_clock_stands(valkey: redis.Redis) -> None:
    assert FEW_KEPT[0] in text_of("batch", movable_clock=True)
    ledger = LedgerFixture(RealLedger(valkey, edit=lambda text: text.replace(*FEW_KEPT)))
    for first in range(0, 4000, 100):
        ledger.send("gw", *(Group.of(f"tpp-{number}", hold=(1,)) for number in range(first, first + 100)))
    assert valkey.info("memory")["used_memory_vm_functions"] < 2_000_000


@pytest.mark.parametrize("metrics", [1, 2, 3, 700])
def test_a_state_that_was_packed_piece_by_piece_is_read_as_it_was_written(
    real_ledger: LedgerFixture, stored: redis.Redis, metrics: int
) -> None:
    # 17 values, 11 a metric and 3 a share: so many that the stack holds them, and too many for it.
    names = [f"metric {number}" for number in range(metrics)]
    real_ledger.load(prices={name: ["s", 0] for name in names})
    for units in (1, 200, 70_000):
        real_ledger.send("gw", *(Group.of("tpp", name, hold=(units,)) for name in names))
        packed = stored.get(state_key_of(real_ledger))
        assert isinstance(packed, bytes)
        state = state_values(packed)
        assert unpack_state(packed).packed() == packed
        assert len(state) == 17 + 11 * metrics + 3 * metrics
        real_ledger.send("gw", *(Group.of("tpp", name, settle=(units,)) for name in names))
    assert real_ledger.settled_units(metric="metric 0") == 70_201


def test_what_is_stored_of_a_price_is_the_tier_that_the_last_hold_met(real_ledger: LedgerFixture) -> None:
    assert_the_tier_that_was_met_last_is_stored(real_ledger)


def assert_the_tier_that_was_met_last_is_stored(ledger: LedgerFixture) -> None:
    assert isinstance(ledger.backend, RealLedger)
    ledger.load(prices={"api_calls": ["g", 3, 0, 0, 6, 5, 0, MAX_INT, 7, 0]}, ceiling=1000)
    for count, piece in [(1, [0, 3, 0, 0]), (3, [0, 3, 0, 0]), (5, [4, 6, 5, 5]), (8, [7, MAX_INT, 22, 7])]:
        while ledger.settled_units() < count:
            ledger.hold(1)
            ledger.settle(1)
        packed: Any = ledger.backend.client.get(state_key_of(ledger))
        assert state_values(packed)[20:24] == piece


@pytest.mark.parametrize("values", ["one fewer", "one more", "none"])
def test_a_batch_whose_values_are_not_those_of_its_groups_changes_nothing(
    real_ledger: LedgerFixture, stored: redis.Redis, values: str
) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    real_ledger.load()
    real_ledger.hold(1)
    before = real_ledger.backend.state(["tpp"], ["gw"])
    keys = real_ledger.backend.keys
    names = [keys.instance(HOME, "gw"), keys.clock(HOME), keys.outbox(HOME), *account_keys(keys, "tpp")]
    head, group = one_group(
        real_ledger.epochs["gw"], real_ledger.seqs["gw"] + 1, "gw.00", "", ["api_calls", 0, 0, 0, [1]]
    )
    wrong = {"one fewer": [group[:-1]], "one more": [group + pack(1)], "none": []}[values]
    text = text_of("batch", movable_clock=True)
    with pytest.raises(redis.ResponseError, match="a batch of 1 groups whose values are more or fewer"):
        call_batch(stored, text, names, head, *wrong)
    assert real_ledger.backend.state(["tpp"], ["gw"]) == before
    assert len(call_batch(stored, text, names, head, group)) > 0, "as it was sent, it is good"


@pytest.mark.parametrize("field", ["prices", "periods", "closed"])
def test_an_account_of_which_a_field_cannot_be_read_stops_its_batch_and_is_as_it_was(
    real_ledger: LedgerFixture, stored: redis.Redis, field: str
) -> None:
    real_ledger.load()
    real_ledger.load("other")
    real_ledger.spend(3, "other")
    real_ledger.wait_until_ms(real_ledger.account("other").end_ms)
    stored.hset(key_of(real_ledger, "other"), field, b"\xc1")
    before = [stored.dump(key_of(real_ledger, account)) for account in ("tpp", "other")]
    with pytest.raises(LedgerError, match="ACCOUNT 2 "):
        real_ledger.send("gw", Group.of("tpp", late=(1,)), Group.of("other", late=(1,)))
    assert [stored.dump(key_of(real_ledger, account)) for account in ("tpp", "other")] == before
