"""Look-ups when more are asked for than go at a time."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.identity.lookup_turns import LookupTurns
from sidecar.identity.types import IdentityUnavailable


class Callers:
    """Take turns, and note who got one."""

    def __init__(self, turns: LookupTurns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, *, known: bool = False) -> None:
        """``name``: the peer is its first letter."""

        async def wait() -> None:
            await self.turns.take(name[0], known=known)
            self.order.append(name)

        self.tasks[name] = asyncio.ensure_future(wait())
        await asyncio.sleep(0)

    async def end(self, *, known: bool = False) -> None:
        self.turns.give_back(known=known)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_known_callers_go_before_strangers_and_find_room_among_them() -> None:
    callers = Callers(LookupTurns(at_once=3, strangers=2))
    for name in ("a1", "a2", "a3", "b1"):
        await callers.ask(name)
    assert callers.order == ["a1", "a2"]
    await callers.ask("k1", known=True)
    await callers.ask("k2", known=True)
    assert callers.order == ["a1", "a2", "k1"]
    await callers.end()
    assert callers.order == ["a1", "a2", "k1", "k2"]
    await callers.end()
    await callers.end(known=True)
    assert callers.order == ["a1", "a2", "k1", "k2", "a3", "b1"]
    assert callers.turns.waiting == 0


async def test_strangers_take_turns_by_peer() -> None:
    callers = Callers(LookupTurns(at_once=1, strangers=1))
    for name in ("a0", "a1", "a2", "a3", "b1", "c1", "b2"):
        await callers.ask(name)
    for _ in range(6):
        await callers.end()
    assert callers.order == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_too_many_of_one_peer_or_in_all_are_not_let_wait() -> None:
    callers = Callers(LookupTurns(at_once=1, strangers=1, waiting_max=4))
    for name in ("a0", "a1", "a2", "a3", "b1", "b2", "c1"):
        await callers.ask(name)
    refused = [name for name, task in callers.tasks.items() if task.done() and task.exception()]
    assert refused == ["a3", "c1"]
    assert callers.turns.refused == 2
    with pytest.raises(IdentityUnavailable):
        await callers.tasks["c1"]
    await callers.ask("k1", known=True)
    for _ in range(5):
        await callers.end()
    assert callers.order == ["a0", "k1", "a1", "b1", "a2", "b2"]


@pytest.mark.parametrize("known", [False, True])
async def test_who_gives_up_leaves_no_turn_behind(known: bool) -> None:
    callers = Callers(LookupTurns(at_once=1, strangers=1))
    for name in ("a0", "b1", "c1"):
        await callers.ask(name, known=known)
    callers.tasks["b1"].cancel()
    await asyncio.sleep(0)
    callers.turns.give_back(known=known)
    callers.tasks["c1"].cancel()  # its turn has come, and it has not heard of it
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await callers.ask("d1", known=known)
    assert callers.order == ["a0", "d1"]
    assert callers.turns.waiting == 0
