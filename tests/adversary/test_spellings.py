"""One call spelled so that the gateway and the API take it for different ones."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.gateway.routes import IdempotencyRule, Route
from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.rig import Rig, get, post, route

DEAR = 7
DENIED = Route("(other)", deny=True)
ONCE = Route("(other)", idempotency=IdempotencyRule())


class OnceForEachKey:
    """An API that does a call once for each text of its key's field, and the last one's answer again."""

    def __init__(self) -> None:
        self.done = 0
        self._seen: set[tuple[bytes, ...]] = set()

    async def __call__(self, talk: Conversation) -> None:
        while True:
            request = await talk.request()
            key = tuple(request.all(b"Idempotency-Key"))
            if not key or key not in self._seen:
                self._seen.add(key)
                self.done += 1
            await talk.send(length())


async def charged_units(rig: Rig) -> int:
    return sum(event[2] for event in await rig.events())


SPELLED_KEYS = [
    (b"Idempotency-Key: k",),
    (b"Idempotency-Key: k, k",),
    (b"Idempotency-Key: k", b"Idempotency-Key: k"),
    (b'Idempotency-Key: k, "k"',),
    (b"idempotency-key:\tk\t",),
]


async def test_no_spelling_of_a_key_has_a_call_done_anew_for_nothing(gateway: Any) -> None:
    """Most APIs compare the text of the field."""
    api = OnceForEachKey()
    async with gateway(api, default=ONCE) as rig:
        for lines in SPELLED_KEYS:
            assert (await rig.ask(post(b"pay", *lines))).status == 200
        assert await charged_units(rig) >= api.done


@pytest.mark.parametrize("name", [b"Idempotency-Key", b"idempotency_key", b"X-API-Key", b"X-HTTP-Method-Override"])
async def test_no_field_that_decides_the_price_can_be_hidden_from_the_api(gateway: Any, name: bytes) -> None:
    api = OnceForEachKey()
    async with gateway(api, default=ONCE) as rig:
        for _ in range(3):
            await rig.ask(post(b"pay", b"Idempotency-Key: k", b"Connection: close, " + name))
        assert not api.done


async def test_a_key_that_paid_for_one_method_does_not_pay_for_another_that_a_field_names(gateway: Any) -> None:
    rule = IdempotencyRule()
    routes = [
        route("/a", "POST", units=1, method_override=True, idempotency=rule),
        route("/a", "DELETE", units=DEAR, method_override=True, idempotency=rule),
    ]
    async with gateway(echo, routes=routes, default=DENIED) as rig:
        key = b"Idempotency-Key: k"
        assert (await rig.ask(post(b"x", key, target=b"/a"))).status == 200
        assert (await rig.ask(post(b"x", key, b"X-HTTP-Method-Override: DELETE", target=b"/a"))).status == 200
        assert await charged_units(rig) == 1 + DEAR


@pytest.mark.parametrize("default", [DENIED, Route("(other)")], ids=["deny", "charge"])
async def test_a_preflight_that_names_another_method_is_none(gateway: Any, default: Route) -> None:
    routes = [route("/a", "POST", units=DEAR, cors=True)]
    preflight = (b"Origin: https://tpp.example", b"Access-Control-Request-Method: POST")
    async with gateway(echo, routes=routes, default=default) as rig:
        answer = await rig.ask(get(b"/a", *preflight, b"X-HTTP-Method-Override: POST", key=b"", method=b"OPTIONS"))
        assert answer.status in (400, 405)
        assert not rig.api.requests


@pytest.mark.parametrize(
    "name",
    [
        b"SCRIPT_NAME",
        b"Script-Name",
        b"script_name",
        b"PATH_INFO",
        b"X-Script-Name",
        b"X_Script_Name",
        b"Daphne-Root-Path",
    ],
)
async def test_no_field_moves_a_call_to_another_path(gateway: Any, name: bytes) -> None:
    """gunicorn serves /v1/transactions for /cheap/v1/transactions with SCRIPT_NAME: /cheap from its own host."""
    async with gateway(echo) as rig:
        await rig.ask(get(b"/cheap/v1/transactions", name + b": /cheap"))
        assert not any(b": /cheap" in line for request in rig.api.requests for line in request.lines)


async def test_of_two_readings_at_one_price_the_one_without_free_repeats_decides(gateway: Any) -> None:
    routes = [
        route("/a", "POST", method_override=True, idempotency=IdempotencyRule()),
        route("/a", "DELETE", method_override=True),
    ]
    async with gateway(echo, routes=routes, default=DENIED) as rig:
        for _ in range(3):
            await rig.ask(post(b"x", b"Idempotency-Key: k", b"X-HTTP-Method-Override: DELETE", target=b"/a"))
        assert await charged_units(rig) == 3
