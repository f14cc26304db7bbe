"""The state machine finds mistakes: each of these, made on purpose in the scripts' text, is caught in a few runs."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.ledger.machine import LedgerMachine
from tests.support.ledger_driver import text_of

RUNS_MAX = 300
SCRIPTS = ("batch", "load", "reap", "register", "heartbeat", "give_back")

MUTANTS = [
    ("funds are spent one short", "if cost > ceiling then", "if cost >= ceiling then"),
    ("a settle keeps the instance's share", "    state[s + 2] = left\n", "    state[s + 2] = left + units\n"),
    ("a settle keeps what the instance holds in all", "held, units = held - taken, units - taken\n  end\n  local state",
     "units = units - taken\n  end\n  local state"),
    ("a late settle has an event but no charge", "charge(acc, i, settled + late)", "charge(acc, i, settled)"),
    ("a tier ends one unit early", "if n <= to then\n        if below == 0", "if n < to then\n        if below == 0"),
    ("a piece is used below its beginning", "if top <= state[i + 4] and n >= lo then", "if top <= state[i + 4] then"),
    ("a period's cost is forgotten", "state[8] = bounded(state[8] + cost)\n      state[i + 2]", "state[i + 2]"),
    ("holds do not outlive their period", "    state[i + 8] = 0\n", "    state[i + 8], state[i + 9] = 0, 0\n"),
    ("a zombie may hold", "if not registered then\n    return UNREGISTERED", "if false then\n    return UNREGISTERED"),
    ("a refused call uses up the rate", "    if wait > 0 then",
     "    state[9] = tat\n    acc.limits = nil\n    if wait > 0 then"),
    ("an hour ends one too late", "floor(acc.now_ms / HOUR_MS)", "floor((acc.now_ms - 1) / HOUR_MS)"),
    ("an hour that is over is forgotten", "call('HGET', acc.key, field) or ''", "''"),
    ("the hour outlives its units", "    state[i + 10] = 0\n    acc.dirty", "    acc.dirty"),
    ("a changed account is not read anew", "if not packed or acc.packed ~= packed then", "if not acc.state then"),
    ("what was packed of a rate outlives it", "day, day_count\n  acc.limits = nil", "day, day_count"),
    ("what was packed of a period outlives it", "acc.limits, acc.subscriptions, acc.slow = nil, nil, {}\n  acc.dirty",
     "acc.limits = nil\n  acc.dirty"),
    ("what was packed outlives who changed it", "nil, nil, nil, {}\n    account_lay_out",
     "nil, nil, nil, acc.slow or {}\n    account_lay_out"),
    ("a restart forgets former holds", "if number(former[3] or 0) > 0 then", "if false then"),
    ("an instance that departs keeps its epoch", "'e', 0, 'h', 0)", "'h', 0)"),
    ("all that departed is given back at once", "elseif left < units then", "elseif false then"),
    ("the share of another instance is settled", "if state[s] == epoch and state[s + 1] == c then",
     "if state[s + 1] == c then"),
    ("the clock goes back", "      us = latest\n", "      stepped = false\n"),
    ("a period begins twice", "return now_ms >= latest_start_ms and now_ms or latest_start_ms", "return now_ms"),
    ("a day begins twice", "if today > day then", "if today ~= day then"),
    ("a rate waits for the other clock", "return min(tat, now_us + interval * burst)", "return tat"),
    ("a heartbeat of the other clock counts", "return min(beat_ms, now_ms)", "return beat_ms"),
    ("an event has the time of its batch", "if acc.charged and acc.now_ms ~= now_ms then", "if false then"),
    ("what was decided before an error is kept",
     "acc.packed, acc.packed_read = nil, packed", "acc.packed_read = packed"),
    ("a subscription that ends is not paid",
     "subscription_close_period(acc, k, max(now_ms, acc.state[position(k) + 1] + 1))", ""),
    ("decimals that shrink round", "exact = exact and math.fmod(money, divisor) == 0",
     "money = money - math.fmod(money, divisor)"),
    ("a metric is charged to the last subscription",
     "if state[13] == 1 or counter_is_live(acc, i) then\n        return i",
     "if state[13] == 1 or counter_is_live(acc, i) then\n        former = i"),
    ("a rate waits again for what it was cut down to", "if tat - interval < state[9] then", "if false then"),
    ("what was held of a former subscription stays held", "if units > 0 and state[13] > 1 then", "if false then"),
    ("what a former subscription had costs nothing", "return former or first", "return first"),
    ("who names no epoch is registered", "registered = epoch ~= 0 and", "registered ="),
    ("a key is charged again", "return until_ms and number(until_ms) > now_ms", "return false"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_deliberate_mistake_is_caught(valkey: redis.Redis, right: str, wrong: str) -> None:
    shipped = [text_of(name, movable_clock=True) for name in SCRIPTS]
    assert any(text.count(right) == 1 for text in shipped), "the mistake is not possible any more; think of another"

    class Mistaken(LedgerMachine):
        def __init__(self) -> None:
            valkey.function_flush()  # what the function keeps of one run must not change the next
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
