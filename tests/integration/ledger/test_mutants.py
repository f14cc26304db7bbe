"""The state machine finds mistakes: each of these, made on purpose in the scripts' text, is caught in a few runs."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.integration.ledger.machine import LedgerMachine
from tests.integration.ledger.test_kept_accounts import assert_the_tier_that_was_met_last_is_stored
from tests.integration.ledger.test_state_machine import FEW_KEPT
from tests.support.ledger_driver import RealLedger, text_of

RUNS_MAX = 1_000
SCRIPTS = ("batch", "load", "reap", "register", "heartbeat", "give_back")

MUTANTS = [
    ("funds are spent one short", "if cost > ceiling then", "if cost >= ceiling then"),
    ("a settle keeps the instance's share", "    state[s + 2] = left\n", "    state[s + 2] = left + units\n"),
    ("a settle keeps what the instance holds in all", "held, units = held - taken, units - taken\n  end\n  local state",
     "units = units - taken\n  end\n  local state"),
    ("a share is that of another counter", "share_add(acc, c, epoch, granted)", "share_add(acc, 1, epoch, granted)"),
    ("a late settle has an event but no charge", "charge(acc, c, settled + late)", "charge(acc, c, settled)"),
    ("a tier ends one unit early", "if n <= to then\n        if below == 0", "if n < to then\n        if below == 0"),
    ("a piece is used below its beginning", "if top <= state[i + 4] and n >= lo then\n    return",
     "if top <= state[i + 4] then\n    return"),
    ("a hold is priced by a piece that begins beyond it", "if top <= state[i + 4] and n >= lo then\n    -- All",
     "if top <= state[i + 4] then\n    -- All"),
    ("a hold is priced by a piece that ends before it", "if top <= state[i + 4] and n >= lo then\n    -- All",
     "if state[i + 3] <= state[i + 4] and n >= lo then\n    -- All"),
    ("a period's cost is forgotten", "state[8] = bounded(state[8] + cost)\n      state[i + 2]", "state[i + 2]"),
    ("holds do not outlive their period", "      state[j] = 0\n", "      state[j], state[j + 1] = 0, 0\n"),
    ("a zombie may hold", "if not registered then\n    return UNREGISTERED", "if false then\n    return UNREGISTERED"),
    ("a refused call uses up the rate", "    if wait > 0 then\n      -- Who",
     "    set_limits(acc, tat, state[limits + 2], state[limits + 3])\n    if wait > 0 then\n      -- Who"),
    ("an hour ends one too late", "floor(acc.now_ms / HOUR_MS)", "floor((acc.now_ms - 1) / HOUR_MS)"),
    ("an hour that is over is forgotten", "call('HGET', acc.key, field) or ''", "''"),
    ("the hour outlives its units", "    state[u] = 0\n    acc.dirty", "    acc.dirty"),
    ("a changed account is not read anew", "if not packed or acc.packed ~= packed then", "if not acc.state then"),
    ("a state that cannot be read is taken for the one before", "    acc.packed = false    -- first", "    -- first"),
    ("what was packed of a rate outlives it", "day, day_count\n  acc.limits_packed = false", "day, day_count"),
    ("what was packed of an hour outlives it", "    state[i + 7] = hour\n    acc.front = false",
     "    state[i + 7] = hour"),
    ("what was packed of a period outlives it", "= new_start_ms\n  acc.front = false", "= new_start_ms"),
    ("what was packed of a counter outlives it", "  state[10] = c\n  acc.front = false", "  state[10] = c"),
    ("what was packed outlives who changed it", "acc.state, acc.front = new, false", "acc.state = new"),
    ("what was packed of an account is written of the next", "    acc.front = packed and front_of(packed)\n",
     "    acc.front = acc.front or packed and front_of(packed)\n"),
    ("a write leaves out an account", "    count = count + 2\n  end\n  return count", "  end\n  return count"),
    ("a restart forgets former holds",
     "if held > 0 then\n  call('HSET', KEYS[4], string.format('departed:%.0f', former)",
     "if false then\n  call('HSET', KEYS[4], string.format('departed:%.0f', former)"),
    ("an instance that departs keeps its epoch", "instance_packed(0, seq, 0,", "instance_packed(epoch, seq, 0,"),
    ("an instance that lives is forgotten", "if known_epoch == 0 then\n    call('PEXPIRE'",
     "if true then\n    call('PEXPIRE'"),
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
     "acc.packed, acc.packed_read = false, packed", "acc.packed_read = packed"),
    ("a subscription that ends is not paid",
     "subscription_close_period(acc, k, max(now_ms, acc.state[subscription_at(k) + 1] + 1))", ""),
    ("decimals that shrink round", "exact = exact and math.fmod(money, divisor) == 0",
     "money = money - math.fmod(money, divisor)"),
    ("a metric is charged to the last subscription",
     "if state[9] == 1 or counter_is_live(acc, c) then\n        return c",
     "if state[9] == 1 or counter_is_live(acc, c) then\n        former = c"),
    ("a rate waits again for what it was cut down to", "if tat - interval < state[limits] then", "if false then"),
    ("what was held of a former subscription stays held", "if units > 0 and state[9] > 1 then", "if false then"),
    ("what a former subscription had costs nothing", "return former or first", "return first"),
    ("who names no epoch is registered", "registered = epoch ~= 0 and", "registered ="),
    ("a key that is over counts", "if not until_ms or until_ms <= acc.in_call then", "if not until_ms then"),
    ("a call is under way though nothing of its instance is held",
     "if epoch and epoch ~= 0 and not holds_something(acc, epoch) then", "if false then"),
    ("a call with another body is a repeat", "if fingerprint ~= single[7] then", "if false then"),
    ("a conflict is charged where it is refused", "local refuses = single[9] == 1", "local refuses = false"),
    ("repeats have no end", "return count < single[8] and REPEAT or nil, false", "return REPEAT, false"),
    ("a repeat is not counted", "mp_pack(until_ms, 0, count + 1, fingerprint)",
     "mp_pack(until_ms, 0, count, fingerprint)"),
    ("a second call takes the key of the first", "return refuses and UNDER_WAY or nil, false",
     "return refuses and UNDER_WAY or nil, true"),
    ("a call that was charged is still under way", "if not until_ms or (of == epoch and count == token) then",
     "if not until_ms then"),
    ("a charge takes the key of another call", "if not until_ms or (of == epoch and count == token) then",
     "if true then"),
    ("a call that was released is still under way", "if until_ms and of == epoch and count == token then",
     "if false then"),
    ("a release ends the key of another call", "if until_ms and of == epoch and count == token then",
     "if until_ms then"),
    ("a release ends the key of another call of its instance", "if until_ms and of == epoch and count == token then",
     "if until_ms and of == epoch then"),
    ("a call of a former epoch is given back once more", "if registered and p == epoch then", "if registered then"),
    ("a call under a key that settles late is not charged", "if kind ~= RELEASE and code == GRANTED then",
     "if kind ~= RELEASE and code == GRANTED and (p == epoch or kind ~= SETTLE) then"),
    ("a record of a spool is charged again", "if mark_read(acc, record) then", "if false then"),
    ("a record of a repeat is charged", "elseif known == fingerprint and count < repeats_max then",
     "elseif false then"),
    ("a record of another body is a repeat", "elseif known == fingerprint and count < repeats_max then",
     "elseif count < repeats_max then"),
    ("answers that cost nothing count for nothing where the instance was reaped",
     "if acc.state[1] ~= 0 and unpaid_interval > 0 then",
     "if registered and acc.state[1] ~= 0 and unpaid_interval > 0 then"),
    ("answers that cost nothing count for who is not there", "if acc.state[1] ~= 0 and unpaid_interval > 0 then",
     "if unpaid_interval > 0 then"),
    ("plain calls do not wait for answers that cost nothing", " and state[acc.limits + 1] <= now_us\n", "\n"),
    ("answers that cost nothing are bounded one short",
     "local wait = cut + unpaid_interval - unpaid_interval * unpaid_burst - now_us",
     "local wait = cut + 2 * unpaid_interval - unpaid_interval * unpaid_burst - now_us"),
    ("answers that cost nothing wait for the other clock",
     "return min(tat, now_us + interval * burst + UNPAID_DEBT_US)", "return tat"),
    ("answers that cost nothing wait again for what they were cut down to", "if cut < unpaid_tat then",
     "if false then"),
    ("what was packed of answers that cost nothing outlives it",
     "acc.state[acc.limits + 1] = tat\n  acc.limits_packed = false", "acc.state[acc.limits + 1] = tat"),
]  # fmt: skip


MUTANTS_OF_FEW_KEPT = [
    ("an account is taken from the call that uses it", "if acc.in_call == now_ms then", "if false then"),
    ("an account that is not kept any more is kept", "known[acc.key] = nil", "acc.used_hash = true"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_deliberate_mistake_is_caught(valkey: redis.Redis, right: str, wrong: str) -> None:
    catch(valkey, (right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"), [m[1:] for m in MUTANTS_OF_FEW_KEPT], ids=[m[0] for m in MUTANTS_OF_FEW_KEPT]
)
def test_a_mistake_is_caught_where_more_accounts_are_in_use_than_are_kept(
    valkey: redis.Redis, right: str, wrong: str
) -> None:
    catch(valkey, FEW_KEPT, (right, wrong))


def test_a_mistake_that_costs_nothing_but_time_shows_in_what_is_stored(valkey: redis.Redis) -> None:
    """Without the tier that was met last, every hold reads the prices."""
    right = "lo, hi, a, b\n      acc.front = false\n"
    assert_possible(right)
    ledger = LedgerFixture(RealLedger(valkey, edit=lambda text: text.replace(right, "lo, hi, a, b\n")))
    with pytest.raises(AssertionError):
        assert_the_tier_that_was_met_last_is_stored(ledger)


def assert_possible(right: str) -> None:
    shipped = [text_of(name, movable_clock=True) for name in SCRIPTS]
    assert any(text.count(right) == 1 for text in shipped), "the mistake is not possible any more; think of another"


def catch(valkey: redis.Redis, *edits: tuple[str, str]) -> None:
    for right, _ in edits:
        assert_possible(right)

    def edited(text: str) -> str:
        for right, wrong in edits:
            text = text.replace(right, wrong)
        return text

    class Mistaken(LedgerMachine):
        def __init__(self) -> None:
            valkey.function_flush()  # what the function keeps of one run must not change the next
            super().__init__(valkey, edit=edited)

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
