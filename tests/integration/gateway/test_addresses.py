"""An API with several addresses, some of which are dead, and one that moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from sidecar.gateway import addresses
from sidecar.gateway.addresses import Address, Addresses, interleaved
from sidecar.gateway.parameters import UpstreamTarget
from tests.conftest import free_port
from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.rig import get

NAME = "api.bank.example"


@contextmanager
def deaf(host: str) -> Iterator[Address]:
    """An address that drops whoever wants to connect: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield Address(socket.AF_INET, listener.getsockname())


def refusing() -> Address:
    return Address(socket.AF_INET, ("127.0.0.1", free_port()))


class Names:
    """A name service whose answers a test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[Address]] = {}
        self.asked = 0
        monkeypatch.setattr(addresses, "look_up", self._look_up)

    async def _look_up(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        await asyncio.sleep(0)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answers[host]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


async def served(script: Any = echo) -> tuple[asyncio.Server, Address]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(api, 1, reader, writer)
        try:
            await script(conversation)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    api: Any = type("Api", (), {"requests": []})()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, Address(socket.AF_INET, server.sockets[0].getsockname())


def test_families_take_turns() -> None:
    six = [Address(socket.AF_INET6, (f"::{n}", 80, 0, 0)) for n in range(3)]
    four = [Address(socket.AF_INET, (f"10.0.0.{n}", 80)) for n in range(2)]
    assert interleaved([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]
    assert interleaved([*four, *six]) == [four[0], six[0], four[1], six[1], six[2]]
    assert interleaved([]) == []


async def test_an_ip_address_is_not_looked_up(names: Names) -> None:
    assert await Addresses("127.0.0.1", 80).current() == [Address(socket.AF_INET, ("127.0.0.1", 80))]
    assert await Addresses("::1", 80).current() == [Address(socket.AF_INET6, ("::1", 80, 0, 0))]
    assert not names.asked


@pytest.mark.parametrize("dead", ["deaf", "refusing"])
async def test_a_dead_first_address_costs_a_moment(gateway: Any, names: Names, dead: str) -> None:
    server, alive = await served()
    with ExitStack() as stack:
        first = stack.enter_context(deaf("127.0.0.1")) if dead == "deaf" else refusing()
        names.answers[NAME] = [first, alive]
        async with gateway(echo, upstream=UpstreamTarget(NAME, 81)) as rig:
            assert [(await rig.ask(get())).status for _ in range(3)] == [200] * 3
            # The one that did not answer comes last from then on.
            assert (await rig.pool._addresses.current()) == [alive, first]
    server.close()


async def test_an_api_of_which_no_address_answers_is_a_502(gateway: Any, names: Names) -> None:
    names.answers[NAME] = [refusing(), refusing()]
    async with gateway(echo, upstream=UpstreamTarget(NAME, 81)) as rig:
        assert (await rig.ask(get())).status == 502


async def test_an_api_whose_name_is_not_known_is_a_502(gateway: Any, names: Names) -> None:
    async with gateway(echo, upstream=UpstreamTarget(NAME, 81)) as rig:
        assert (await rig.ask(get())).status == 502
        assert await rig.charged() == []


async def test_traffic_follows_a_name_that_moves(gateway: Any, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    async def say(what: bytes, talk: Conversation) -> None:
        while True:
            await talk.answer(length(what))

    monkeypatch.setattr(addresses, "FRESH_S", 0.05)
    old, before = await served(lambda talk: say(b"old", talk))
    new, after = await served(lambda talk: say(b"new", talk))
    names.answers[NAME] = [before]
    async with gateway(echo, upstream=UpstreamTarget(NAME, 81), header_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(get())
        assert (await wire.response()).body == b"old"
        names.answers[NAME] = [after]
        async with asyncio.timeout(5):
            body = b"old"
            while body == b"old":
                await asyncio.sleep(0.05)
                await wire.send(get())
                body = (await wire.response()).body
        assert body == b"new"
        del names.answers[NAME]  # a name service that is away changes nothing
        await asyncio.sleep(0.2)
        await wire.send(get())
        assert (await wire.response()).body == b"new"
    old.close()
    new.close()


async def test_a_connection_that_is_too_old_is_not_used_again(gateway: Any) -> None:
    async with gateway(echo, upstream_age_s=0.1) as rig:
        for _ in range(3):
            await rig.ask(get())
        assert rig.api.connections == 1
        await asyncio.sleep(0.15)
        await rig.ask(get())  # whether it is closed by the sweep or with this answer
        await rig.ask(get())
        assert rig.api.connections in (2, 3)


@pytest.mark.parametrize("said", [b"timeout=2, max=100", b'max=5,timeout="2"', b"TIMEOUT=2"])
async def test_an_api_that_says_how_long_it_keeps_a_connection_is_heeded(gateway: Any, said: bytes) -> None:
    async def script(talk: Conversation) -> None:
        while True:
            await talk.answer(length(b"ok", b"Connection: keep-alive", b"Keep-Alive: " + said))

    async with gateway(script) as rig:
        answer = await rig.ask(get())
        assert answer.get(b"Keep-Alive") is None
        [connection] = rig.pool._idle
        assert connection.keep_s == 1.0
