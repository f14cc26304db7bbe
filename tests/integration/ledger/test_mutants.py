"""The state machine finds mistakes: each of these, made on purpose in the scripts' text, is caught in a few runs."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.ledger.machine import LedgerMachine
from tests.support.ledger_driver import text_of

RUNS_MAX = 300

MUTANTS = [
    ("funds are spent one short", "if cost > ceiling then", "if cost >= ceiling then"),
    ("a settle keeps the instance's share", "share_now[field] = share - units", "acc.dirty = true"),
    ("a late settle has an event but no charge", "i, field, settled + late)", "i, field, settled)"),
    ("a tier ends one unit early", "if n <= to then\n        if below == 0", "if n < to then\n        if below == 0"),
    ("a piece is used below its beginning", "if top <= state[i + 4] and n >= lo then", "if top <= state[i + 4] then"),
    ("a period's cost is forgotten", "kept[1] = bounded(kept[1] + cost)", "kept[1] = kept[1]"),
    ("holds do not outlive their period", "kept[at + 2] = h", "kept[at + 2] = 0"),
    ("a zombie may hold", "if not registered then\n    return UNREGISTERED", "if false then\n    return UNREGISTERED"),
    ("a refused call uses up the rate", "local wait = tat", "state[4] = tat\n    local wait = tat"),
    ("an hour ends one too late", "floor(now_ms / HOUR_MS)", "floor((now_ms - 1) / HOUR_MS)"),
    ("an hour forgets what came before, one account", "call('HINCRBY', hour", "call('HSET', hour"),
    ("an hour forgets what came before, several", "(units and number(units) or 0)", "0"),
    ("a changed account is not read anew", "elseif acc.state_packed ~= state then", "elseif not acc.state then"),
    ("changed policy are not read anew", "if acc.policy_packed ~= policy then", "if not acc.policy then"),
    ("what was packed of a rate outlives it", "day, day_count\n  acc.head = nil", "day, day_count"),
    ("what was packed of a period outlives it", "= kept\n  acc.head, acc.tails = nil, {}", "= kept"),
    (
        "what was packed outlives who changed it",
        "mp_values(state)\n    acc.head, acc.tails = nil, {}", "mp_values(state)\n    acc.tails = acc.tails or {}",
    ),
    ("a restart keeps former holds", "remain = shares_return(KEYS, now_ms)\nif remain", "remain = 0\nif remain"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_deliberate_mistake_is_caught(valkey: redis.Redis, right: str, wrong: str) -> None:
    shipped = [text_of(name, movable_clock=True) for name in ("batch", "load", "reap", "register", "heartbeat")]
    assert any(text.count(right) == 1 for text in shipped), "the mistake is not possible any more; think of another"

    class Mistaken(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(valkey, edit=lambda text: text.replace(right, wrong))

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Mistaken,
            settings=settings(
                max_examples=RUNS_MAX,
                stateful_step_count=40,
                derandomize=True,
                database=None,
                print_blob=False,
                phases=[Phase.generate],  # found is enough; the smallest example is of no interest
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
