"""Repeats under an idempotency key: free where the route says so, with the same body, a few times."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.gateway.routes import IdempotencyRule, Route
from tests.integration.gateway.api import Conversation, always, echo, length
from tests.integration.gateway.rig import account, chunked, get, post
from tests.integration.gateway.test_ledger_trouble import silence

BUDGET_S = 0.2


def on(**how: Any) -> Route:
    """Every route, with free repeats."""
    return Route("(other)", idempotency=IdempotencyRule(**how))


REFUSES: dict[str, Any] = {"header": b"x-idempotency-key", "refuse_conflicts": True}
K = b"Idempotency-Key: k"


def repeated(answers: list[Any]) -> list[bool]:
    return [answer.get(b"X-Credits-Repeat") == b"true" for answer in answers]


async def test_a_route_that_says_nothing_charges_every_call(gateway: Any) -> None:
    async with gateway(echo) as rig:
        answers = [await rig.ask(post(b"a", K, b"x-idempotency-key: k")) for _ in range(3)]
        assert repeated(answers) == [False] * 3
        assert await rig.charged() == [200] * 3


async def test_a_repeat_goes_to_the_api_and_costs_nothing_a_few_times(gateway: Any) -> None:
    async with gateway(echo, default=on(repeats_max=2)) as rig:
        answers = [await rig.ask(post(b"a", K)) for _ in range(5)]
        assert repeated(answers) == [False, True, True, False, False]
        assert [answer.get(b"X-Credits-Charged") for answer in answers] == [b"0.10", b"0.00", b"0.00", b"0.10", b"0.10"]
        assert [answer.body for answer in answers] == [b"a"] * 5
        assert await rig.charged() == [200] * 3
        assert rig.gateway.context.counters.repeats == {"tpp": 2}
        assert [(line["repeat"], line["units"]) for line in rig.log] == [
            (False, 1), (True, 0), (True, 0), (False, 1), (False, 1)
        ]  # fmt: skip


async def test_two_hundred_bodies_under_one_key_are_two_hundred_charges(gateway: Any) -> None:
    async with gateway(echo, default=on()) as rig:
        answers = [await rig.ask(post(b"%d" % number, K)) for number in range(200)]
        assert not any(repeated(answers))
        assert len(await rig.charged()) == 200


async def test_one_header_counts(gateway: Any) -> None:
    """Seen on 0.2.0: a constant x-idempotency-key beside fresh keys of the other field, 50 payments, 1 charged."""
    async with gateway(echo, default=on()) as rig:
        answers = [
            await rig.ask(post(b"", b"x-idempotency-key: same", b"Idempotency-Key: %d" % number)) for number in range(5)
        ]
        assert not any(repeated(answers))
        assert len(await rig.charged()) == 5


async def test_quotes_are_not_part_of_the_key_and_a_key_that_is_there_twice_makes_no_repeat(gateway: Any) -> None:
    async with gateway(echo, default=on()) as rig:
        keys = (b"k", b'"k"', b"'k'", b"k, k", b'"k"', b"k")
        answers = [await rig.ask(post(b"", b"Idempotency-Key: " + key)) for key in keys]
        assert repeated(answers) == [False, True, False, False, True, True]


async def test_a_key_is_good_for_one_method_one_target_and_one_account(gateway: Any) -> None:
    async with gateway(echo, default=on(), accounts=[account("tpp"), account("other")]) as rig:
        requests = (
            post(b"", K),
            post(b"", K, target=b"/elsewhere"),
            post(b"", K, method=b"PUT"),
            post(b"", K).replace(b"key-of-tpp", b"key-of-other"),
        )
        assert not any(repeated([await rig.ask(request) for request in requests]))
        assert len(await rig.charged()) == 4


async def test_a_get_is_charged_every_time_whatever_key_it_carries(gateway: Any) -> None:
    async with gateway(echo, default=on(required=True)) as rig:
        for _ in range(2):
            await rig.ask(get(b"/a", K))
        await rig.ask(get(b"/a"))
        assert await rig.charged() == [200] * 3


async def test_how_a_body_was_sent_does_not_tell_it_from_another(gateway: Any) -> None:
    async with gateway(echo, default=on(repeats_max=9)) as rig:
        pieces = get(b"/payments", b"Transfer-Encoding: chunked", K, method=b"POST")
        answers = [
            await rig.ask(post(b"abcdef", K)),
            await rig.ask(pieces + chunked(b"abcdef")),
            await rig.ask(pieces + chunked(b"abc", b"def")),
            await rig.ask(pieces + chunked(b"abc", b"deF")),
        ]
        assert repeated(answers) == [False, True, True, False]


async def test_a_body_that_comes_slowly_is_compared_as_a_whole(gateway: Any) -> None:
    async with gateway(echo, default=on()) as rig:
        await rig.ask(post(b"abcdef", K))
        for last, is_repeat in ((b"f", True), (b"F", False)):
            wire = await rig.connect()
            await wire.send(post(b"abcdef", K)[:-3])
            await asyncio.sleep(0.05)
            await wire.send(b"de" + last)
            assert repeated([await wire.response()]) == [is_repeat]


async def test_a_client_that_waits_for_100_is_asked_for_its_body_first(gateway: Any) -> None:
    async with gateway(echo, default=on()) as rig:
        await rig.ask(post(b"abc", K))
        wire = await rig.connect()
        await wire.send(get(b"/payments", b"Content-Length: 3", b"Expect: 100-continue", K, method=b"POST"))
        assert (await wire.head()).status == 100
        await wire.send(b"abc")
        assert repeated([await wire.response()]) == [True]


async def test_a_body_that_is_too_long_to_be_gathered_is_never_a_repeat(gateway: Any) -> None:
    async with gateway(echo, default=on(**REFUSES), request_buffer_bytes=1000) as rig:
        key = b"x-idempotency-key: k"
        for size, repeats in ((1000, [False, True]), (1001, [False, False])):
            target = b"/%d" % size
            answers = [await rig.ask(post(bytes(size), key, target=target)) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 200]
            assert repeated(answers) == repeats


@pytest.mark.parametrize("size", [999, 1000, 1001])
async def test_how_a_body_in_chunks_arrives_does_not_tell_whether_it_is_too_long(gateway: Any, size: int) -> None:
    """Its framing does not count, and neither does that its last chunk is still on its way."""
    many = [chunked(*[b"a"] * size)[at : at + 500] for at in range(0, size * 6 + 5, 500)]
    one = chunked(b"a" * size)
    async with gateway(echo, default=on(repeats_max=9), request_buffer_bytes=1000) as rig:
        answers = [await rig.ask(post(b"a" * size, K))]
        for pieces in ([one], [one[:-5], one[-5:]], [one[:-2], one[-2:]], many):
            wire = await rig.connect()
            head = get(b"/payments", b"Transfer-Encoding: chunked", K, method=b"POST")
            await wire.send(head, *pieces, apart=True)
            answers.append(await wire.response())
        assert {answer.body for answer in answers} == {b"a" * size}
        assert repeated(answers) == [False] + [size <= 1000] * 4


async def test_a_call_that_failed_is_charged_when_it_is_tried_again(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(length(status=b"503 No"))
        await talk.answer(length())
        await talk.answer(length())

    async with gateway(script, default=on(**REFUSES)) as rig:
        answers = [await rig.ask(post(b"", b"x-idempotency-key: k")) for _ in range(3)]
        assert [answer.status for answer in answers] == [503, 200, 200]
        assert repeated(answers) == [False, False, True]
        assert await rig.charged() == [200]


async def test_many_that_race_under_one_key_are_charged_each(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length())

    async with gateway(script, default=on()) as rig:
        asked = [asyncio.create_task(rig.ask(post(b"", K))) for _ in range(10)]
        await rig.until(lambda: len(rig.api.requests) == 10)
        proceed.set()
        answers = await asyncio.gather(*asked)
        assert {answer.status for answer in answers} == {200}
        assert not any(repeated(answers))
        assert await rig.charged() == [200] * 10


async def test_a_repeat_passes_when_nothing_is_left_and_nothing_else_does(gateway: Any) -> None:
    """Seen on 0.2.0: an account with nothing left got 300 of 300."""
    poor = account(mode="prepaid", funds=Decimal("0.10"))
    async with gateway(echo, default=on(), accounts=[poor]) as rig:
        answers = [await rig.ask(post(b"a", K)) for _ in range(10)]
        assert [answer.status for answer in answers] == [200] * 4 + [402] * 6
        assert (await rig.ask(post(b"b", K))).status == 402
        assert await rig.charged() == [200]


# Refusals


async def test_another_body_under_a_used_key_is_refused_where_the_route_says_so(gateway: Any) -> None:
    async with gateway(echo, default=on(**REFUSES)) as rig:
        key = b"x-idempotency-key: k"
        first, other, again = [await rig.ask(post(body, key)) for body in (b"a", b"b", b"a")]
        assert [answer.status for answer in (first, other, again)] == [200, 422, 200]
        assert orjson.loads(other.body)["type"].endswith("idempotency-key-reused")
        assert repeated([again]) == [True]
        assert await rig.charged() == [200]
        assert len(rig.api.requests) == 2


async def test_a_second_call_is_refused_while_the_first_is_under_way_where_the_route_says_so(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length())

    async with gateway(script, default=on(**REFUSES)) as rig:
        request = post(b"a", b"x-idempotency-key: k")
        first = asyncio.create_task(rig.ask(request))
        await rig.until(lambda: rig.api.requests)
        second = await rig.ask(request)
        assert (second.status, second.get(b"Retry-After")) == (409, b"1")
        assert orjson.loads(second.body)["type"].endswith("call-under-way")
        proceed.set()
        assert (await first).status == 200
        assert await rig.charged() == [200]


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ((), "idempotency-key-missing"),
        ((b"x-idempotency-key: k",), "idempotency-key-missing"),
        ((b"Idempotency-Key:",), "idempotency-key-invalid"),
        ((b"Idempotency-Key: " + b"x" * 256,), "idempotency-key-invalid"),
        ((b'Idempotency-Key: "k',), "idempotency-key-invalid"),
        ((b"Idempotency-Key: k", b"Idempotency-Key: l"), "idempotency-key-invalid"),
    ],
)
async def test_a_call_without_a_key_that_can_be_read_is_refused(
    gateway: Any, lines: tuple[bytes, ...], kind: str
) -> None:
    async with gateway(echo, default=on(required=True)) as rig:
        answer = await rig.ask(post(b"a", *lines))
        assert answer.status == 400
        assert orjson.loads(answer.body)["type"].endswith(kind)
        assert (await rig.ask(post(b"a", K, K))).status == 200
        assert len(rig.api.requests) == 1


# Answers that cost nothing


async def test_answers_that_cost_nothing_are_bounded(gateway: Any) -> None:
    refused = always(length(status=b"400 No"))
    async with gateway(refused, unpaid_per_second=0.01, unpaid_burst=3) as rig:
        answers = [await rig.ask(get()) for _ in range(4)]
        assert [answer.status for answer in answers] == [400, 400, 400, 429]
        assert 90 <= int(answers[3].get(b"Retry-After") or 0) <= 100
        assert orjson.loads(answers[3].body)["policy"] == "unpaid"
        assert await rig.charged() == []


# While the ledger is away


async def test_while_the_ledger_is_away_only_what_this_process_saw_charged_is_a_repeat(
    gateway: Any, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"hold_budget_s": BUDGET_S, "spool_directory": tmp_path, "default": on(repeats_max=2)}
    async with gateway(echo, **how) as rig:
        assert (await rig.ask(post(b"a", K))).status == 200
        assert repeated([await rig.ask(post(b"a", K))]) == [True]
        async with silence(rig):
            answers = [await rig.ask(post(body, K)) for body in (b"a", b"b", b"b", b"a")]
        assert repeated(answers) == [True, False, False, False]
        assert [answer.status for answer in answers] == [200, 200, 200, 503], "the rig's spool allows two units"
        await rig.until(lambda: rig.ledger.is_up)
        async with asyncio.timeout(10):
            while len(await rig.charged()) < 4:
                await asyncio.sleep(0.05)


async def test_a_call_that_was_charged_while_the_ledger_was_away_is_known_to_it_later(
    gateway: Any, tmp_path: Path
) -> None:
    async with gateway(echo, hold_budget_s=BUDGET_S, spool_directory=tmp_path, default=on()) as rig:
        async with silence(rig):
            answers = [await rig.ask(post(b"a", K)) for _ in range(2)]
        assert repeated(answers) == [False, True]
        assert answers[1].get(b"X-Credits-Charged") == b"0"
        await rig.until(lambda: rig.ledger.is_up)
        async with asyncio.timeout(10):
            while len(await rig.charged()) < 2:
                await asyncio.sleep(0.05)
        assert repeated([await rig.ask(post(b"a", K))]) == [True]
        assert await rig.charged() == [200, 200]
