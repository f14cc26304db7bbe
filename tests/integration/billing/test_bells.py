"""Doorbells, on every kind of Valkey."""

from __future__ import annotations

import asyncio
import time

import pytest

from sidecar.billing.reconcile.reload_requests import SWEEP, Bells, Ring
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client


@pytest.fixture
def bells(any_client: Client, keys: Keys) -> Bells:
    return Bells(any_client, keys)


async def names(bells: Bells, limit: int = 100) -> list[str]:
    return [ring.name for ring in await bells.waiting(limit)]


async def now_ms(client: Client, keys: Keys) -> int:
    seconds, micros = await client.eval("return redis.call('TIME')", 1, keys.bells())
    return int(seconds) * 1000 + int(micros) // 1000


async def test_what_rings_waits_until_it_is_answered(bells: Bells) -> None:
    assert await bells.waiting(10) == ()
    assert await bells.ring(["account:a", "plan:p"]) == 2
    rings = await bells.waiting(10)
    assert {ring.name for ring in rings} == {"account:a", "plan:p"}
    assert await bells.count() == 2
    assert await bells.answer(rings) == 2
    assert await bells.waiting(10) == ()


async def test_ringing_often_is_ringing_once(bells: Bells) -> None:
    assert await bells.ring(["account:a", "account:a", "account:b"]) == 2
    assert await bells.ring(["account:a", "account:c"]) == 1
    assert await bells.count() == 3


async def test_ringing_nobody_is_nothing(bells: Bells) -> None:
    assert await bells.ring([]) == 0
    assert await bells.answer([]) == 0


async def test_a_ring_during_the_work_of_an_earlier_one_stays(bells: Bells) -> None:
    await bells.ring(["account:a", "account:b"])
    rings = await bells.waiting(10)
    assert await bells.ring(["account:a"]) == 0

    assert await bells.answer(rings) == 1
    (again,) = await bells.waiting(10)
    assert again.name == "account:a"
    assert await bells.answer([again]) == 1


async def test_an_answer_of_a_leader_of_the_past_takes_no_later_ring(bells: Bells) -> None:
    await bells.ring(["account:a"])
    old = await bells.waiting(10)
    await bells.answer(old)
    await bells.ring(["account:a"])

    assert await bells.answer(old) == 0
    assert await names(bells) == ["account:a"]


async def test_who_waits_longest_comes_first_however_often_it_rings(bells: Bells) -> None:
    for name in ("account:a", "account:b", "account:c"):
        await bells.ring([name])
    for _ in range(5):
        await bells.ring(["account:a"])
    assert await names(bells) == ["account:a", "account:b", "account:c"]
    assert await names(bells, 2) == ["account:a", "account:b"]


async def test_the_age_counts_from_the_first_ring_that_was_not_answered(bells: Bells) -> None:
    await bells.ring(["account:a"])
    await asyncio.sleep(0.05)
    await bells.ring(["account:a"])
    (ring,) = await bells.waiting(1)
    assert 0.05 <= ring.age_s < 5


async def test_a_score_with_many_zeros_is_answered_like_any_other(bells: Bells, any_client: Client, keys: Keys) -> None:
    # Such a number has another spelling in some replies: 1.79e+15.
    await any_client.zadd(keys.bells(), {"account:a": 1_790_000_000_000_000, "account:b": 1_700_000_000_000_000})
    rings = await bells.waiting(10)
    assert [ring.score for ring in rings] == [b"1700000000000000", b"1790000000000000"]
    assert await bells.answer(rings) == 2


async def test_a_name_of_any_letters_comes_back_as_it_was(bells: Bells) -> None:
    await bells.ring(["plan:Größe 1 %s", "account:a:b"])
    assert set(await names(bells)) == {"plan:Größe 1 %s", "account:a:b"}


async def test_beyond_the_limit_a_ring_becomes_a_sweep(any_client: Client, keys: Keys) -> None:
    bells = Bells(any_client, keys, names_max=2)
    assert await bells.ring(["account:a", "account:b", "account:c", "account:d"]) == 3
    assert set(await names(bells)) == {"account:a", "account:b", SWEEP}
    rings = await bells.waiting(10)
    assert await bells.ring(["account:a"]) == 0
    assert await bells.answer(rings) == 2
    assert await names(bells) == ["account:a"], "what waits already rings as itself"


async def test_many_names_ring_in_one_call(bells: Bells) -> None:
    many = [f"account:{n}" for n in range(2_345)]
    assert await bells.ring(many) == 2_345
    rings = await bells.waiting(5_000)
    assert {ring.name for ring in rings} == set(many)
    assert await bells.answer(rings) == 2_345


async def test_sixty_who_ring_and_ten_who_answer_lose_nothing(bells: Bells) -> None:
    done: list[str] = []

    async def ring(n: int) -> None:
        await bells.ring([f"account:{n % 20}"])

    async def work() -> None:
        for _ in range(30):
            rings = await bells.waiting(5)
            done.extend(each.name for each in rings)
            await bells.answer(rings)

    await asyncio.gather(*(ring(n) for n in range(60)), *(work() for _ in range(10)))
    await work()
    assert set(done) == {f"account:{n}" for n in range(20)}
    assert await bells.count() == 0


# alarms


async def test_an_alarm_rings_when_its_time_has_come(bells: Bells, any_client: Client, keys: Keys) -> None:
    at_ms = await now_ms(any_client, keys) + 150
    await bells.wake("account:a", at_ms)
    assert await bells.waiting(10) == ()
    while not (rings := await bells.waiting(10)):
        await asyncio.sleep(0.01)
    assert await now_ms(any_client, keys) >= at_ms
    assert [ring.name for ring in rings] == ["account:a"]
    await bells.answer(rings)
    assert await bells.waiting(10) == ()


async def test_the_earlier_of_two_alarms_stays(bells: Bells, any_client: Client, keys: Keys) -> None:
    now = await now_ms(any_client, keys)
    await bells.wake("account:a", now - 1)
    await bells.wake("account:a", now + 60_000)
    await bells.wake("account:b", now + 60_000)
    await bells.wake("account:b", now - 1)
    assert set(await names(bells)) == {"account:a", "account:b"}


async def test_an_alarm_of_a_bell_that_waits_is_a_ring_of_it(bells: Bells, any_client: Client, keys: Keys) -> None:
    await bells.ring(["account:a"])
    (first,) = await bells.waiting(1)
    await bells.wake("account:a", await now_ms(any_client, keys) - 1)
    await bells.waiting(1)
    assert await bells.answer([first]) == 0
    assert await bells.count() == 1


async def test_what_is_postponed_rings_again_and_meanwhile_stands_in_nobody_s_way(bells: Bells) -> None:
    await bells.ring(["account:a"])
    await bells.ring(["account:b"])
    (first,) = await bells.waiting(1)
    assert await bells.postpone([first], 300) == 1
    assert await names(bells, 1) == ["account:b"]
    await bells.answer(await bells.waiting(1))

    started_s = time.monotonic()
    while not await bells.waiting(1):
        await asyncio.sleep(0.02)
    assert 0.1 < time.monotonic() - started_s < 5
    assert await names(bells) == ["account:a"]


async def test_what_rang_again_is_not_postponed(bells: Bells) -> None:
    await bells.ring(["account:a"])
    rings = await bells.waiting(1)
    await bells.ring(["account:a"])
    assert await bells.postpone(rings, 60_000) == 0
    assert await names(bells) == ["account:a"]


async def test_alarms_beyond_the_limit_become_one_for_a_sweep(any_client: Client, keys: Keys) -> None:
    bells = Bells(any_client, keys, names_max=2)
    past_ms = await now_ms(any_client, keys) - 1000
    for n in range(5):
        await bells.wake(f"account:{n}", past_ms)
    assert await any_client.zcard(keys.alarms()) == 3
    assert SWEEP in await names(bells)


# marks


async def test_a_mark_silences_the_second_ring_under_it(bells: Bells) -> None:
    assert await bells.ring_once(["account:a"], "m1", 60) == 1
    rings = await bells.waiting(1)
    assert await bells.ring_once(["account:a", "account:b"], "m1", 60) is None
    assert await bells.answer(rings) == 1
    assert await bells.count() == 0


async def test_another_mark_rings(bells: Bells) -> None:
    await bells.ring_once(["account:a"], "m1", 60)
    assert await bells.ring_once(["account:a"], "m2", 60) == 0
    assert await bells.ring_once(["account:b"], "m3", 60) == 1


async def test_a_mark_is_forgotten_in_time(bells: Bells) -> None:
    await bells.ring_once(["account:a"], "m1", 1)
    await asyncio.sleep(1.1)
    assert await bells.ring_once(["account:a"], "m1", 1) == 0


async def test_marks_are_bounded_and_the_oldest_goes_first(any_client: Client, keys: Keys) -> None:
    bells = Bells(any_client, keys, marks_max=3)
    for n in range(5):
        await bells.ring_once(["account:a"], f"m{n}", 60)
    assert await bells.ring_once(["account:a"], "m4", 60) is None
    assert await bells.ring_once(["account:a"], "m2", 60) is None
    assert await bells.ring_once(["account:a"], "m1", 60) == 0


async def test_of_many_with_one_mark_one_rings(bells: Bells) -> None:
    answers = await asyncio.gather(*(bells.ring_once(["account:a"], "m", 60) for _ in range(50)))
    assert sorted(answers, key=lambda each: each is None) == [1] + [None] * 49


def test_a_ring_is_a_value() -> None:
    assert Ring("account:a", b"1", 0.5) == Ring("account:a", b"1", 0.5)


async def test_a_name_that_cannot_be_one_is_a_mistake_of_the_caller(bells: Bells) -> None:
    for name in ("", "x" * 513):
        with pytest.raises(AssertionError):
            await bells.ring([name])
    assert await bells.count() == 0
