"""What departed processes hold comes back, or belongs to accounts that are gone: who may conclude that, and when."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.ledger.client import reaper
from sidecar.ledger.keys import Keys

KEYS = Keys(partitions=2)
FIELD = b"departed:1024"


class Server:
    """Answers as one server, or as several in turn: ``answers`` are what remains after each page of accounts, and
    ``departed`` is what the server has before each look."""

    def __init__(self, departed: list[int], answers: list[int]) -> None:
        self.departed = departed
        self.answers = answers
        self.deleted: list[bytes] = []

    async def hgetall(self, _: str) -> dict[bytes, bytes]:
        units = self.departed.pop(0) if self.departed else 0
        return {b"epochs": b"3", FIELD: b"%d" % units} if units else {b"epochs": b"3"}

    async def zrangebylex(self, key: str, *_: Any, **__: Any) -> list[bytes]:
        return [key.encode()]

    async def eval(self, *_: Any) -> int:
        return self.answers.pop(0)

    async def hdel(self, _: str, *fields: bytes) -> None:
        self.deleted += fields


async def give_back(server: Server) -> list[bytes]:
    await reaper._give_back(server, KEYS, 0, lambda: None)
    return server.deleted


async def test_units_of_accounts_that_are_gone_are_dropped_once_a_look_found_none_of_them() -> None:
    assert await give_back(Server([3], [3, 3])) == [FIELD]


async def test_units_that_a_look_gave_back_in_part_are_looked_for_again() -> None:
    """A failover in between: the second server has what the first one gave back."""
    assert await give_back(Server([3, 2, 0], [1, 2, 0])) == []


async def test_what_is_left_after_a_part_came_back_is_dropped_by_the_next_look() -> None:
    assert await give_back(Server([3, 1], [1, 1, 1, 1])) == [FIELD]


@pytest.mark.parametrize("answers", [[2, 2], [3, 2], [4, 4], [2, 3]])
async def test_a_look_that_met_other_units_than_there_were_drops_nothing(answers: list[int]) -> None:
    server = Server([3] * 3, answers * 3)
    assert await give_back(server) == []
    assert server.departed == [], "three looks, and the next round goes on"
