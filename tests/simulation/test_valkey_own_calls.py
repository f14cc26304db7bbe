"""What this project calls by redis-py, called by its own classes: both servers answer alike.

So the simulated server has all that the control plane and the commands ask of one.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest

from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.usage_sync.sync_store import SyncState, ValkeySyncStore
from sidecar.ledger.account_pages import account_pages
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.adjustments import AccountAdjuster
from sidecar.ledger.accounts.api_keys import ApiKeys
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import FixedPeriod
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import find_ledger, open_ledger
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.ledger.store import Store
from sidecar.ledger.transfer.access import Access
from sidecar.ledger.transfer.export import Export
from sidecar.ledger.transfer.importing import Import
from sidecar.ledger.verification.refused_settles import count_refused, refused_settles
from sidecar.ledger.verification.verify import verify_ledger
from sidecar.metering.audit.charged_events import read_charged
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.metering.outbox.outbox import Outbox, Retention
from sidecar.metering.outbox.outbox_status import dead_letters, outbox_status, requeue_dead_letters
from sidecar.valkey.lease import Lease
from sidecar.valkey.topology import Client
from tests.integration.billing.usage_sync.test_sync_store import EVENT, FREEZE
from tests.reference.messages import Batch, Group, Single
from tests.simulation.valkey.clients import async_client, directly, sync_client
from tests.simulation.valkey.held_clock import compiler
from tests.simulation.valkey.twins import START_US, Twins, twins_in
from tests.support.ledger_driver import RealLedger

KEYS = Keys(partitions=4)
METRIC = "api_calls"
ACCOUNTS = ("tpp-1", "tpp-2", "tpp-3")
ROOM_BYTES = 10_000_000
HOUR_US = 3_600_000_000

pytestmark = pytest.mark.skipif(compiler() is None, reason="a C compiler makes the library that holds a server's clock")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins_in(tmp_path_factory.mktemp("twins")) as twins:
        yield twins


@pytest.fixture
def twins(servers: Twins) -> Iterator[Twins]:
    servers.reset()
    yield servers
    servers.compare_contents()


@pytest.fixture
async def client(twins: Twins) -> AsyncIterator[Client]:
    client = async_client(directly(twins.open))
    yield client
    await client.aclose()


def spec(account: str, calls: int = 1000) -> AccountSpec:
    return AccountSpec(
        id=account, mode="prepaid", currency="GBP", period=FixedPeriod(86_400, START_US // 1_000_000),
        prices={METRIC: Standard(Decimal("0.01"))}, funds=Decimal(calls) / 100,
    )  # fmt: skip


async def loaded(client: Client) -> AccountLoader:
    await open_ledger(client, KEYS)
    loader = AccountLoader(client, KEYS)
    for account in ACCOUNTS:
        await loader.load(spec(account))
    return loader


async def settled(twins: Twins, client: Client, count: int = 3) -> RealLedger:
    """A gateway made so many batches, of which the last left holds."""
    await loaded(client)
    ledger = RealLedger.__new__(RealLedger)
    ledger.client, ledger.keys = sync_client(twins.open), KEYS
    ledger._movable, ledger._edit, ledger._now_us, ledger._scopes = False, None, None, {}
    names = ledger._instance_keys("gw")
    epoch, seq, _ = ledger._run("register", names, ["gw", 0], None)
    for number in range(count):
        twins.move(700_000)
        settles = (1,) if number else ()
        groups = tuple(Group.of(a, METRIC, hold=(1, 2), settle=settles, late=(2,), known_version=1) for a in ACCOUNTS)
        once = Single("tpp-1", METRIC, 1, scope=f"key {number}", known_version=1)
        ledger.batch("gw", Batch(epoch, seq + number + 1, groups, (once,)))
    return ledger


async def test_accounts_are_loaded_changed_and_shown(twins: Twins, client: Client) -> None:
    loader = await loaded(client)
    assert (await find_ledger(client, KEYS)) is not None
    adjuster = AccountAdjuster(client, KEYS, loader)
    await loader.load(spec("tpp-1", 2000))
    await loader.suspend("tpp-2")
    await loader.resume("tpp-2")
    await adjuster.adjust_units("tpp-1", METRIC, 7, "a test")
    await adjuster.adjust_funds("tpp-1", Decimal("1.5"), "a test")
    twins.move(2 * 24 * HOUR_US)
    await adjuster.adjust_units("tpp-1", METRIC, 1, "in a later period")
    await adjuster.close("tpp-3", "a test")
    await adjuster.delete("tpp-3", "a test")
    assert set(await loader.list()) == {"tpp-1", "tpp-2"}
    assert (await loader.show("tpp-1")) is not None
    assert [page async for page in account_pages(client, KEYS)]
    assert len(await AuditLog(client, KEYS).read()) == 5
    api_keys = ApiKeys(client, KEYS)
    digest = "ab" * 32
    await api_keys.assign("tpp-1", [digest])
    assert await api_keys.account_of(digest) == "tpp-1"
    await api_keys.remove("tpp-1", [digest])


async def test_the_outbox_is_read_finished_and_taken_over(twins: Twins, client: Client) -> None:
    await settled(twins, client)
    keeping = Retention(keep_ms=60_000, entries_max=1000)
    first, second = Outbox(client, KEYS, "first", keeping), Outbox(client, KEYS, "second", keeping)
    assert (await first.read(ROOM_BYTES)).entries == []
    entries = (await first.read(ROOM_BYTES)).entries
    assert len(entries) == 3
    twins.move(5_000_000)
    await first.keep(entries[:1])
    assert len(await second.claim(4_000, ROOM_BYTES)) == 2
    await first.forget(1)
    entries[0].dead_letters.append({b"e": b"refused"})
    assert await second.finish(entries) == []
    await outbox_status(client, KEYS)
    letters = await dead_letters(client, KEYS)
    assert len(letters) == 1
    await first.measure()
    await requeue_dead_letters(client, KEYS, [letters[0].id])
    await first.bound_dead_letters(0)
    await first.drop_tail([0], half=True)
    twins.move(90_000_000)
    await first.trim()
    await first.read(ROOM_BYTES)
    await first.leave()
    await second.leave()
    assert first.take_errors() + second.take_errors() == []


async def test_a_dead_gateway_is_reaped_and_the_ledger_verified(twins: Twins, client: Client) -> None:
    await settled(twins, client)
    assert await reap(client, KEYS, 60_000) == 0
    twins.move(90_000_000)
    assert await reap(client, KEYS, 60_000) > 0
    assert await reap(client, KEYS, 60_000) == 0
    twins.move(2 * HOUR_US)

    async def charged(now_ms: int) -> object:
        return await read_charged(client, KEYS, now_ms)

    report = await verify_ledger(client, KEYS, read_charged=charged)  # type: ignore[arg-type]
    assert not report.differences
    assert await count_refused(client, KEYS) == 0
    assert not await refused_settles(client, KEYS)


async def test_hours_are_compacted(twins: Twins, client: Client) -> None:
    await settled(twins, client)
    twins.move(24 * HOUR_US)
    work = HourCompaction(client, KEYS, 1, must_agree=False)
    for _ in range(3):
        twins.move(24 * HOUR_US)
        await work.compact(twins.now_us // 1000)


async def test_leases_reloads_and_the_state_of_the_sync(twins: Twins, client: Client) -> None:
    one, two = Lease(client, KEYS.lease("r"), "one", 400), Lease(client, KEYS.lease("r"), "two", 400)
    token = await one.acquire()
    assert token is not None
    assert await two.acquire() is None
    assert await one.renew()
    twins.move(500_000)
    later = await two.acquire()
    assert later is not None
    assert later > token
    assert not await one.is_current(token)
    await two.release()
    requests = ReloadRequests(client, KEYS)
    await requests.add(["account:a", "plan:p"])
    await requests.add_once(["account:b"], "a webhook", 60)
    assert await requests.add_once(["account:b"], "a webhook", 60) is None
    await requests.add_for_stranger("account:c")
    await requests.schedule("account:d", twins.now_us // 1000 + 5_000)
    waiting = await requests.waiting(10)
    assert len(waiting) == 4
    await requests.postpone(waiting[:1], 1_000)
    await requests.complete(waiting[1:])
    twins.move(10_000_000)
    assert len(await requests.waiting(10)) == 2
    assert await requests.count() == 2
    store = ValkeySyncStore(client, KEYS)
    state = await store.apply("tpp-1", SyncState(), FREEZE, 3)
    assert EVENT.transaction_id in (await store.read("tpp-1")).frozen_events
    assert state.token == 3


async def test_a_ledger_is_exported_and_imported(twins: Twins, client: Client) -> None:
    await settled(twins, client)
    twins.move(90_000_000)
    await reap(client, KEYS, 60_000)
    file = io.BytesIO()
    await Export(Access(client), KEYS, file, instance_ttl_ms=60_000).run()
    twins.call("FLUSHALL")
    other = Keys(partitions=2)
    await Import(Access(client), other, io.BytesIO(file.getvalue()), instance_ttl_ms=60_000).run()
    report = await verify_ledger(client, other, read_charged=None)
    assert not report.differences
    assert Store(client, other, AccountLoader(client, other)) is not None
