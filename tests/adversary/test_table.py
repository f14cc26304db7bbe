"""What a caller does × when the API begins and what it answers: nothing is served for nothing, and honest callers pay
for what they got."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.adversary.callers import CALLERS, Caller, Scene
from tests.adversary.counting import ANSWERS, BREAKS, CLOSES, END, FIRST_BYTE, HEAD, NEVER, SERVES, SUCCESS, Counting
from tests.integration.gateway.rig import account
from tests.integration.gateway.wire import TIMEOUT_S

SILENCE_S = 1.0
"""How long a caller may say nothing in the middle of a body. Some do no more than that."""
NO_ANSWER_S = 0.3
"""For an API that never answers."""


def owed(api: Counting, caller: Caller, done: int) -> int:
    """The least that what the API did has to cost."""
    if api.answer in SERVES:
        return done
    if caller.breaks_off and api.answer in (NEVER, CLOSES, BREAKS):
        return done
    if not caller.safe and api.answer == NEVER:
        return done
    return 0


APIS = [*((HEAD, answer) for answer in ANSWERS), (FIRST_BYTE, SUCCESS), (END, SUCCESS), (END, NEVER)]


@pytest.mark.parametrize(("begins", "answer"), APIS)
async def test_what_was_served_was_paid_and_what_was_paid_was_served(gateway: Any, begins: str, answer: str) -> None:
    """All callers at once, each with an account of its own."""
    api = Counting(begins, answer)
    accounts = {f"c{number}": name for number, name in enumerate(CALLERS)}
    async with gateway(
        api,
        accounts=[account(each) for each in accounts],
        body_timeout_s=SILENCE_S,
        admission_timeout_s=TIMEOUT_S,
        response_timeout_s=NO_ANSWER_S if answer == NEVER else TIMEOUT_S,
        unpaid_per_second=1e4,
        unpaid_burst=10_000,
    ) as rig:
        await asyncio.gather(*(CALLERS[name].act(Scene(rig, api, each)) for each, name in accounts.items()))
        for wire in rig.wires:
            wire.close()
        await rig.until(lambda: not rig.gateway.connections)
        charged = Counter(event[0] for event in await rig.events())
        wrong = []
        for each, name in accounts.items():
            caller, done = CALLERS[name], api.done[each]
            if charged[each] < owed(api, caller, done) or (
                caller.honest and answer in SERVES and charged[each] != done
            ):
                wrong.append(f"{name}: the API did {done}, {charged[each]} were charged")
        assert not wrong, "\n".join(wrong)
        assert not rig.gateway.context.bodies.used
        assert not rig.pool.waiting
