"""The callers of the table before servers that others wrote, which note what they did."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import Route
from tests.adversary.callers import CALLERS, KeyedWire, Scene
from tests.adversary.counting import Counting
from tests.adversary.servers import NAMES, serving
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import account, get, post, route

DEAR = 7
AT_ONCE = 16
"""Callers at a time: what a server of eight threads can take."""


@pytest.mark.parametrize("name", NAMES)
async def test_a_server_never_does_more_than_is_charged(gateway: Any, tmp_path: Path, name: str) -> None:
    """But for what it answered with a failure of its own: these servers answer 200 to whoever does not break off."""
    accounts = {f"c{number}": each for number, each in enumerate(CALLERS)}
    async with (
        serving(name, tmp_path) as server,
        gateway(
            echo,
            accounts=[account(each) for each in accounts],
            upstream=UpstreamTarget(port=server.port),
            body_timeout_s=1.0,
            response_timeout_s=8.0,
            unpaid_per_second=1e4,
            unpaid_burst=10_000,
        ) as rig,
    ):
        free = asyncio.Semaphore(AT_ONCE)

        async def act(who: str) -> None:
            async with free:
                # What the API has heard of is not known here, so a caller that waits for that waits a little.
                await CALLERS[accounts[who]].act(Scene(rig, Counting(), who))

        await asyncio.gather(*map(act, accounts))
        for wire in rig.wires:
            wire.close()
        await rig.until(lambda: not rig.gateway.connections)
        charged = Counter(event[0] for event in await rig.events())
        done = Counter(server.accounts())
        assert done.total() > len(CALLERS)
        unpaid = Counter(
            line["account"]
            for line in rig.log
            if line.get("account") in accounts
            and line["status"] >= 400
            and not line.get("units")
            and (line["status"] != 499 or CALLERS[accounts[line["account"]]].breaks_off)
        )
        wrong = [
            f"{accounts[who]}: the API did {count}, {charged[who]} were charged"
            for who, count in done.items()
            if charged[who] < count - unpaid[who]
        ]
        assert not wrong, "\n".join(wrong)


FIELDS = [
    b"SCRIPT_NAME: /cheap", b"Script-Name: /cheap", b"X-Script-Name: /cheap", b"PATH_INFO: /v1/transactions",
    b"X-Forwarded-Prefix: /cheap", b"X-Original-URL: /v1/transactions", b"X-Rewrite-URL: /v1/transactions",
    b"X-Forwarded-Path: /v1/transactions", b"Daphne-Root-Path: /cheap", b"X-HTTP-Method-Override: DELETE",
]  # fmt: skip
PATHS = [
    b"/v1/transactions", b"/V1/Transactions/", b"/v1/%74ransactions", b"/v1/transactions?x", b"/v1/transactions/",
    b"/v1//transactions", b"/cheap/../v1/transactions", b"/v1/transactions;x", b"/v1/transactions%3Bx",
    b"/v1/transactions%3Fx", b"/v1/transactions%23x", b"/v1/transactions.", b"/v1/transactions%20",
    b"/v1%2Ftransactions", b"/v1/transactions%00",
    b"/v1/transactions.json", b"http://api.bank.example/v1/transactions", b"/v1/transactions#x",
    b"/v1/\xc5\xbfransactions", b"/v1/transaction%C5%BF", b"/v1/./transactions", b"/v1/transactions%2F",
    b"/v1\\transactions", b"/cheap%2F..%2Fv1%2Ftransactions", b"/v1/transactions/%2e", b"/v1/transactions//",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_no_field_and_no_path_reaches_what_is_dear_for_little(gateway: Any, tmp_path: Path, name: str) -> None:
    routes = [route("/v1/transactions", units=DEAR), route("/free/**", free=True)]
    requests = [get(path) for path in PATHS] + [
        make(lines)
        for lines in FIELDS
        for make in (
            lambda line: get(b"/cheap/v1/transactions", line),
            lambda line: get(b"/free/v1/transactions", line.replace(b"/cheap", b"/free")),
            lambda line: post(b"{}", line, b"Content-Type: application/json", target=b"/cheap/v1/transactions"),
        )
    ]
    async with (
        serving(name, tmp_path) as server,
        gateway(echo, routes=routes, default=Route("(other)"), upstream=UpstreamTarget(port=server.port)) as rig,
    ):
        reached = 0
        for request in requests:
            before = len(await rig.events())
            answer = await rig.ask(request)
            units = sum(event[2] for event in (await rig.events())[before:])
            if answer.get(b"X-Served") == b"dear":
                reached += 1
                assert units == DEAR, request.partition(b"\r\n\r\n")[0]
        assert reached >= 2


async def test_a_keyed_wire_calls_for_its_account(gateway: Any) -> None:
    async with gateway(echo, accounts=[account("one")]) as rig:
        wire = await Scene(rig, Counting(), "one").connect()
        assert isinstance(wire, KeyedWire)
        await wire.send(get())
        assert (await wire.response()).status == 200
