"""What the function keeps unpacked from call to call is never taken for what is stored."""

from __future__ import annotations

import pytest
import redis

from tests.integration.ledger.desk import Desk
from tests.reference.messages import Code, Group
from tests.support.ledger_driver import RealLedger
from tests.support.ledger_state import pack

KEPT_MAX = 1024


@pytest.fixture
def stored(real_desk: Desk) -> redis.Redis:
    assert isinstance(real_desk.ledger, RealLedger)
    return real_desk.ledger.client


def key_of(desk: Desk, account: str = "tpp") -> str:
    assert isinstance(desk.ledger, RealLedger)
    return desk.ledger.keys.account(account)


def test_a_call_that_ends_in_an_error_leaves_nothing_behind(real_desk: Desk, stored: redis.Redis) -> None:
    real_desk.load(ceiling=10)
    real_desk.load("other")
    real_desk.hold(1)
    stored.hset(key_of(real_desk, "other"), "prices", pack([{"api_calls": ["unheard of", 1]}, {}]))
    for _ in range(3):
        with pytest.raises(redis.ResponseError, match="unknown model"):
            real_desk.send("gw", Group.of("tpp", hold=(4,)), Group.of("other", hold=(1,)))
    assert real_desk.h() == 1
    assert real_desk.hold(9).code == Code.GRANTED, "the failed calls took nothing"


def test_a_state_that_was_put_back_counts(real_desk: Desk, stored: redis.Redis) -> None:
    real_desk.load(ceiling=10)
    before = stored.hget(key_of(real_desk), "state")
    real_desk.hold(10)
    assert real_desk.hold(1).code == Code.CREDIT
    stored.hset(key_of(real_desk), "state", before)
    assert real_desk.hold(10).code == Code.GRANTED


def test_an_account_that_is_gone_is_unknown_and_one_that_returns_begins_anew(
    real_desk: Desk, stored: redis.Redis
) -> None:
    real_desk.load(ceiling=10)
    real_desk.hold(10)
    stored.delete(key_of(real_desk))
    assert real_desk.hold(1).code == Code.UNKNOWN
    stored.delete(key_of(real_desk))
    real_desk.load(ceiling=10)
    assert real_desk.hold(10).code == Code.GRANTED


def test_more_accounts_than_are_kept(real_desk: Desk) -> None:
    accounts = [f"tpp-{number}" for number in range(KEPT_MAX + 100)]
    for account in accounts:
        real_desk.load(account, ceiling=2)
    for expected in (Code.GRANTED, Code.GRANTED, Code.CREDIT):
        for at in range(0, len(accounts), 500):
            reply = real_desk.send("gw", *(Group.of(account, hold=(1,)) for account in accounts[at : at + 500]))
            assert {group.outcomes[0].code for group in reply.groups if group is not None} == {expected}
