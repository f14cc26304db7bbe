"""Reload requests, on every kind of Valkey."""

from __future__ import annotations

import asyncio
import time

import pytest

from sidecar.billing.reconcile.reload_requests import AHEAD_MAX, SWEEP, ReloadRequest, ReloadRequests
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client


@pytest.fixture
def reload_requests(any_client: Client, keys: Keys) -> ReloadRequests:
    return ReloadRequests(any_client, keys)


async def names(reload_requests: ReloadRequests, limit: int = 100) -> list[str]:
    return [request.name for request in await reload_requests.waiting(limit)]


async def now_ms(client: Client, keys: Keys) -> int:
    seconds, micros = await client.eval("return redis.call('TIME')", 1, keys.reload_requests())
    return int(seconds) * 1000 + int(micros) // 1000


async def test_a_request_waits_until_it_is_completed(reload_requests: ReloadRequests) -> None:
    assert await reload_requests.waiting(10) == ()
    assert await reload_requests.add(["account:a", "plan:p"]) == 2
    requests = await reload_requests.waiting(10)
    assert {request.name for request in requests} == {"account:a", "plan:p"}
    assert await reload_requests.count() == 2
    assert await reload_requests.complete(requests) == 2
    assert await reload_requests.waiting(10) == ()


async def test_many_requests_of_one_name_are_one(reload_requests: ReloadRequests) -> None:
    assert await reload_requests.add(["account:a", "account:a", "account:b"]) == 2
    assert await reload_requests.add(["account:a", "account:c"]) == 1
    assert await reload_requests.count() == 3


async def test_a_request_of_no_name_is_nothing(reload_requests: ReloadRequests) -> None:
    assert await reload_requests.add([]) == 0
    assert await reload_requests.complete([]) == 0


async def test_a_request_that_comes_while_an_earlier_one_is_handled_stays(reload_requests: ReloadRequests) -> None:
    await reload_requests.add(["account:a", "account:b"])
    requests = await reload_requests.waiting(10)
    assert await reload_requests.add(["account:a"]) == 0

    assert await reload_requests.complete(requests) == 1
    (again,) = await reload_requests.waiting(10)
    assert again.name == "account:a"
    assert await reload_requests.complete([again]) == 1


async def test_a_former_leader_does_not_complete_a_later_request(reload_requests: ReloadRequests) -> None:
    await reload_requests.add(["account:a"])
    old = await reload_requests.waiting(10)
    await reload_requests.complete(old)
    await reload_requests.add(["account:a"])

    assert await reload_requests.complete(old) == 0
    assert await names(reload_requests) == ["account:a"]


async def test_the_request_that_waits_longest_comes_first_however_often_it_is_made(
    reload_requests: ReloadRequests,
) -> None:
    for name in ("account:a", "account:b", "account:c"):
        await reload_requests.add([name])
    for _ in range(5):
        await reload_requests.add(["account:a"])
    assert await names(reload_requests) == ["account:a", "account:b", "account:c"]
    assert await names(reload_requests, 2) == ["account:a", "account:b"]


async def test_the_age_counts_from_the_first_request_that_was_not_completed(reload_requests: ReloadRequests) -> None:
    await reload_requests.add(["account:a"])
    await asyncio.sleep(0.05)
    await reload_requests.add(["account:a"])
    (request,) = await reload_requests.waiting(1)
    assert 0.05 <= request.age_s < 5


async def test_a_score_with_many_zeros_is_completed_like_any_other(
    reload_requests: ReloadRequests, any_client: Client, keys: Keys
) -> None:
    # Such a number has another spelling in some replies: 1.79e+15.
    await any_client.zadd(
        keys.reload_requests(), {"account:a": 1_790_000_000_000_000, "account:b": 1_700_000_000_000_000}
    )
    requests = await reload_requests.waiting(10)
    assert [request.score for request in requests] == [b"1700000000000000", b"1790000000000000"]
    assert await reload_requests.complete(requests) == 2


async def test_a_name_of_any_letters_comes_back_as_it_was(reload_requests: ReloadRequests) -> None:
    await reload_requests.add(["plan:Größe 1 %s", "account:a:b"])
    assert set(await names(reload_requests)) == {"plan:Größe 1 %s", "account:a:b"}


async def test_beyond_the_limit_a_request_becomes_a_sweep(any_client: Client, keys: Keys) -> None:
    reload_requests = ReloadRequests(any_client, keys, names_max=2)
    assert await reload_requests.add(["account:a", "account:b", "account:c", "account:d"]) == 3
    assert set(await names(reload_requests)) == {"account:a", "account:b", SWEEP}
    requests = await reload_requests.waiting(10)
    assert await reload_requests.add(["account:a"]) == 0
    assert await reload_requests.complete(requests) == 2
    assert await names(reload_requests) == ["account:a"], "what waits already requests as itself"


async def test_many_names_are_requested_in_one_call(reload_requests: ReloadRequests) -> None:
    many = [f"account:{n}" for n in range(2_345)]
    assert await reload_requests.add(many) == 2_345
    requests = await reload_requests.waiting(5_000)
    assert {request.name for request in requests} == set(many)
    assert await reload_requests.complete(requests) == 2_345


async def test_sixty_who_request_and_ten_who_handle_lose_nothing(reload_requests: ReloadRequests) -> None:
    done: list[str] = []

    async def request(n: int) -> None:
        await reload_requests.add([f"account:{n % 20}"])

    async def work() -> None:
        for _ in range(30):
            requests = await reload_requests.waiting(5)
            done.extend(each.name for each in requests)
            await reload_requests.complete(requests)

    await asyncio.gather(*(request(n) for n in range(60)), *(work() for _ in range(10)))
    await work()
    assert set(done) == {f"account:{n}" for n in range(20)}
    assert await reload_requests.count() == 0


# scheduled reloads


async def test_a_scheduled_reload_is_requested_when_its_time_has_come(
    reload_requests: ReloadRequests, any_client: Client, keys: Keys
) -> None:
    at_ms = await now_ms(any_client, keys) + 150
    await reload_requests.schedule("account:a", at_ms)
    assert await reload_requests.waiting(10) == ()
    while not (requests := await reload_requests.waiting(10)):
        await asyncio.sleep(0.01)
    assert await now_ms(any_client, keys) >= at_ms
    assert [request.name for request in requests] == ["account:a"]
    await reload_requests.complete(requests)
    assert await reload_requests.waiting(10) == ()


async def test_the_earlier_of_two_schedules_of_one_name_stays(
    reload_requests: ReloadRequests, any_client: Client, keys: Keys
) -> None:
    now = await now_ms(any_client, keys)
    await reload_requests.schedule("account:a", now - 1)
    await reload_requests.schedule("account:a", now + 60_000)
    await reload_requests.schedule("account:b", now + 60_000)
    await reload_requests.schedule("account:b", now - 1)
    assert set(await names(reload_requests)) == {"account:a", "account:b"}


async def test_scheduled_reloads_leave_the_way_free_for_requests(
    reload_requests: ReloadRequests, any_client: Client, keys: Keys
) -> None:
    """When a month ends, those of all accounts are due at once; a top-up must not wait until all are read."""
    past_ms = await now_ms(any_client, keys) - 1000
    for n in range(3 * AHEAD_MAX):
        await reload_requests.schedule(f"account:{n}", past_ms)
    first = await reload_requests.waiting(1_000)
    assert len(first) == AHEAD_MAX
    await reload_requests.add(["account:topped-up"])
    assert [each.name for each in await reload_requests.waiting(1_000)][AHEAD_MAX:] == ["account:topped-up"]
    await reload_requests.complete(first)
    assert (await reload_requests.waiting(1_000))[0].name == "account:topped-up"
    handled = AHEAD_MAX
    while found := await reload_requests.waiting(1_000):
        handled += await reload_requests.complete(found)
    assert handled == 3 * AHEAD_MAX + 1


async def test_a_scheduled_reload_of_a_name_that_waits_is_a_later_request(
    reload_requests: ReloadRequests, any_client: Client, keys: Keys
) -> None:
    await reload_requests.add(["account:a"])
    (first,) = await reload_requests.waiting(1)
    await reload_requests.schedule("account:a", await now_ms(any_client, keys) - 1)
    await reload_requests.waiting(1)
    assert await reload_requests.complete([first]) == 0
    assert await reload_requests.count() == 1


async def test_what_is_postponed_is_requested_again_and_meanwhile_stands_in_nobody_s_way(
    reload_requests: ReloadRequests,
) -> None:
    await reload_requests.add(["account:a"])
    await reload_requests.add(["account:b"])
    (first,) = await reload_requests.waiting(1)
    assert await reload_requests.postpone([first], 300) == 1
    assert await names(reload_requests, 1) == ["account:b"]
    await reload_requests.complete(await reload_requests.waiting(1))

    started_s = time.monotonic()
    while not await reload_requests.waiting(1):
        await asyncio.sleep(0.02)
    assert 0.1 < time.monotonic() - started_s < 5
    assert await names(reload_requests) == ["account:a"]


async def test_what_was_requested_again_is_not_postponed(reload_requests: ReloadRequests) -> None:
    await reload_requests.add(["account:a"])
    requests = await reload_requests.waiting(1)
    await reload_requests.add(["account:a"])
    assert await reload_requests.postpone(requests, 60_000) == 0
    assert await names(reload_requests) == ["account:a"]


async def test_schedules_beyond_the_limit_become_one_of_a_sweep(any_client: Client, keys: Keys) -> None:
    reload_requests = ReloadRequests(any_client, keys, names_max=2)
    past_ms = await now_ms(any_client, keys) - 1000
    for n in range(5):
        await reload_requests.schedule(f"account:{n}", past_ms)
    assert await any_client.zcard(keys.scheduled_reloads()) == 3
    assert SWEEP in await names(reload_requests)


# marks


async def test_an_idempotency_key_drops_the_second_request_under_it(reload_requests: ReloadRequests) -> None:
    assert await reload_requests.add_once(["account:a"], "m1", 60) == 1
    requests = await reload_requests.waiting(1)
    assert await reload_requests.add_once(["account:a", "account:b"], "m1", 60) is None
    assert await reload_requests.complete(requests) == 1
    assert await reload_requests.count() == 0


async def test_another_idempotency_key_makes_a_request(reload_requests: ReloadRequests) -> None:
    await reload_requests.add_once(["account:a"], "m1", 60)
    assert await reload_requests.add_once(["account:a"], "m2", 60) == 0
    assert await reload_requests.add_once(["account:b"], "m3", 60) == 1


async def test_an_idempotency_key_is_forgotten_in_time(reload_requests: ReloadRequests) -> None:
    await reload_requests.add_once(["account:a"], "m1", 1)
    await asyncio.sleep(1.1)
    assert await reload_requests.add_once(["account:a"], "m1", 1) == 0


async def test_idempotency_keys_are_bounded_and_the_oldest_goes_first(any_client: Client, keys: Keys) -> None:
    reload_requests = ReloadRequests(any_client, keys, idempotency_keys_max=3)
    for n in range(5):
        await reload_requests.add_once(["account:a"], f"m{n}", 60)
    assert await reload_requests.add_once(["account:a"], "m4", 60) is None
    assert await reload_requests.add_once(["account:a"], "m2", 60) is None
    assert await reload_requests.add_once(["account:a"], "m1", 60) == 0


async def test_of_many_with_one_idempotency_key_one_makes_a_request(reload_requests: ReloadRequests) -> None:
    answers = await asyncio.gather(*(reload_requests.add_once(["account:a"], "m", 60) for _ in range(50)))
    assert sorted(answers, key=lambda each: each is None) == [1] + [None] * 49


def test_a_request_is_a_value() -> None:
    assert ReloadRequest("account:a", b"1", 0.5) == ReloadRequest("account:a", b"1", 0.5)


async def test_a_name_that_cannot_be_one_is_a_mistake_of_the_caller(reload_requests: ReloadRequests) -> None:
    for name in ("", "x" * 513):
        with pytest.raises(AssertionError):
            await reload_requests.add([name])
    assert await reload_requests.count() == 0


async def test_names_that_callers_invent_do_not_pile_up_before_what_lago_says(
    reload_requests: ReloadRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.billing.reconcile.reload_requests.STRANGERS_MAX", 3)
    assert [await reload_requests.add_for_stranger(f"account:{n}") for n in range(5)] == [True] * 3 + [False] * 2
    assert await reload_requests.add_for_stranger("account:1")  # it waits already
    assert await reload_requests.add(["wallet:top-up"]) == 1
    assert await names(reload_requests) == ["account:0", "account:1", "account:2", "wallet:top-up"]
