"""A day of Open Banking in small: every caller gets the answer of the API, and pays for it once.

ADVERSARY_CALLS: the number of calls, e.g. 200000 for an hour.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import IdempotencyRule, Route
from tests.adversary.honest_api import EVENTS, bank
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import HOST, Rig, account, chunked, route
from tests.integration.gateway.wire import Wire

CALLS = int(os.environ.get("ADVERSARY_CALLS", "3000"))
TPPS = 12
LINES_PER_TPP = 4
"""Connections on which a TPP calls at a time."""
MEGABYTE = 1_000_000
ROUTES = (
    route("/consents", "POST", idempotency=IdempotencyRule(b"x-idempotency-key")),
    route("/accounts/**", "GET", cors=True),
    route("/payments", "POST", cors=True),
    route("/files", "POST", units=5),
)
PATHS = (
    "/accounts", "/accounts/{id}", "/accounts/{id}/balances", "/accounts/{id}/transactions?page=2",
    "/accounts/{id}/transactions?fromBookingDateTime=2026-01-01T00%3A00%3A00%2B01%3A00&text=two%20words",
    "/accounts/Zo%C3%AB%20B/balances", "/accounts/{id}/statements/2026-01?x[]=1&y=%25&z=a+b", "/accounts/caf%c3%a9",
    "/accounts/{id}.{id}~x-y_z/", "/accounts/DE89%20{id}/transactions?dateTo=&bookingStatus=both",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """``how``: what the client does besides: sends slowly, closes its side, or both not."""

    request: bytes
    status: int
    how: str = ""
    content: bytes | None = None

    @property
    def method(self) -> bytes:
        return self.request.partition(b" ")[0]


def head(method: str, target: str, who: str, *lines: str) -> bytes:
    fields = [f"X-API-Key: this-is-the-key-of-{who}", "Accept: application/json", "User-Agent: tpp/1.0", *lines]
    return f"{method} {target} HTTP/1.1\r\n".encode() + HOST + "\r\n".join(fields).encode() + b"\r\n\r\n"


def day(chance: random.Random, who: str, line: int, count: int) -> Iterator[Call]:
    """What one TPP asks for."""
    for number in range(count):
        some = chance.random()
        id_ = f"{chance.randrange(10**10):010}"
        path = chance.choice(PATHS).replace("{id}", id_)
        marks = [f"x-fapi-interaction-id: {id_}-{number}", "x-fapi-auth-date: Tue, 11 Sep 2012 19:43:31 GMT"]
        if some < 0.55:
            how = "half close" if some < 0.02 else ""
            yield Call(head("GET", path, who, *(marks if number % 2 else [])), 200, how)
        elif some < 0.60:
            yield Call(head("HEAD", path, who), 200)
        elif some < 0.63:
            yield Call(head("GET", f"/accounts/{id_}/missing", who, *marks), 404)
        elif some < 0.66:
            asks = ["Origin: https://app.example", "Access-Control-Request-Method: GET"]
            yield Call(head("OPTIONS", path, "nobody", *asks).replace(b"X-API-Key", b"X-Ignored"), 204)
        elif some < 0.78:
            key = f"x-idempotency-key: {who}-{line}-{number}"
            body = b'{"Data": {"n": %d}}' % number
            consent = Call(head("POST", "/consents", who, key, f"Content-Length: {len(body)}") + body, 201)
            for _ in range(chance.choice((1, 1, 1, 2, 3))):
                yield consent
        elif some < 0.92:
            body = b'{"Data": {"Amount": "%d.00"}}' % number
            signature = "x-jws-signature: " + "eyJ" * chance.randrange(300, 2_000)
            how = chance.choice(("", "", "", "slow", "half close", "expect"))
            lines = [*marks, signature, f"Content-Length: {len(body)}", *(["Expect: 100-continue"] * (how == "expect"))]
            yield Call(head("POST", "/payments", who, *lines) + body, 201, how)
        elif some < 0.94:
            yield Call(head("GET", "/events", who, "Accept: text/event-stream"), 200, content=b"data: ")
        elif some < 0.96:
            yield Call(head("GET", "/poll", who), 204)
        elif some < 0.98:
            content = chance.randbytes(1_000) * (MEGABYTE // 1_000)
            body = chunked(*(content[at : at + 50_000] for at in range(0, MEGABYTE, 50_000)))
            digest = hashlib.sha256(content).hexdigest().encode()
            yield Call(head("POST", "/files", who, "Transfer-Encoding: chunked") + body, 200, "slow", digest)
        else:
            body = chance.randbytes(chance.randrange(100_000))
            request = head("POST", "/echo", who, f"Content-Length: {len(body)}") + body
            yield Call(request, 200, chance.choice(("", "slow")), body)


async def make(rig: Rig, wire: Wire, call: Call) -> None:
    """Sends a call and looks at its answer."""
    begin, _, body = call.request.partition(b"\r\n\r\n")
    if call.how == "expect":
        await wire.send(begin + b"\r\n\r\n")
        assert (await wire.head()).status == 100
        await wire.send(body)
    elif call.how == "slow":
        step = max(1, len(body) // 8)
        await wire.send(begin + b"\r\n\r\n", *(body[at : at + step] for at in range(0, len(body), step)), apart=True)
    else:
        await wire.send(call.request)
        if call.how == "half close":
            wire.half_close()
    answer = await wire.response(call.method)
    assert (answer.status, answer.cut) == (call.status, False), (begin, answer)
    assert call.content is None or call.content in answer.body, begin
    assert call.content != b"data: " or answer.body.count(b"data: ") == EVENTS


async def calls_on_one_line(rig: Rig, calls: Iterator[Call], chance: random.Random) -> None:
    """A client keeps its connection for a while."""
    wire: Wire | None = None
    for call in calls:
        if wire is None:
            wire = await rig.connect()
        await make(rig, wire, call)
        if call.how == "half close" or chance.random() < 0.1:
            wire.close()
            wire = None


async def test_a_day_has_no_refusal_and_no_call_is_charged_twice(gateway: Any) -> None:
    tpps = [f"tpp-{number}" for number in range(TPPS)]
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    async with (
        bank() as (api, port),
        gateway(
            echo,
            accounts=[account(each) for each in tpps],
            routes=ROUTES,
            default=Route("(other)"),
            upstream=UpstreamTarget(port=port),
        ) as rig,
    ):
        each = CALLS // (TPPS * LINES_PER_TPP)
        lines = [(who, line, random.Random(f"{seed} {who} {line}")) for who in tpps for line in range(LINES_PER_TPP)]
        await asyncio.gather(
            *(calls_on_one_line(rig, day(chance, who, line, each), chance) for who, line, chance in lines)
        )
        counters = rig.gateway.context.counters
        assert not counters.refusals
        assert not counters.sheds
        statuses = Counter(event[5] for event in await rig.events())
        assert set(statuses) == {200, 201, 204}
        served = Counter({path: count for (method, path), count in api.calls.items() if method != "OPTIONS"})
        charged = Counter(event[3] for event in await rig.events())
        assert charged["/payments"] == served["payments"]
        assert charged["/files"] == served["files"]
        assert charged["/consents"] == len(api.consents) == served["consents"] - sum(counters.repeats.values())
