"""What a request costs when servers that others wrote take it for something dearer than its spelling says."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import flask
import pytest
from werkzeug.serving import make_server

from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import Route
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import Rig, get, post, route

DEAR = 7
ROUTES = (route("/v1/transactions", "GET", "POST", units=DEAR), route("/v1/accounts:export", units=DEAR))
CHEAP = Route("(other)", units=1)
DENIED = Route("(other)", deny=True)
OVERRIDE = b"X-HTTP-Method-Override: DELETE"
PREFLIGHT = (b"Origin: https://tpp.example", b"Access-Control-Request-Method: POST")

# What the gateway answers, and what it forwards


async def test_a_known_path_with_another_method_is_405_with_allow(gateway: Any) -> None:
    async with gateway(echo, routes=ROUTES, default=DENIED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/v1/transactions", method=b"DELETE"))
        answer = await wire.response()
        assert (answer.status, answer.get(b"Allow")) == (405, b"GET, HEAD, POST")
        assert b"urn:quota-sidecar:method-not-allowed" in answer.body
        await wire.send(get(b"/v1/nowhere"))
        answer = await wire.response()
        assert (answer.status, answer.get(b"Allow")) == (404, None)
        assert rig.api.requests == []


@pytest.mark.parametrize(
    ("path", "units"),
    [(b"/V1/Transactions/", DEAR), (b"/v1/accounts%3aexport?a=%2F", DEAR), (b"/v1/caf%c3%a9%20", 1)],
)
async def test_a_path_is_forwarded_as_it_came_whatever_it_was_priced_by(gateway: Any, path: bytes, units: int) -> None:
    async with gateway(echo, routes=ROUTES, default=CHEAP) as rig:
        assert (await rig.ask(get(path))).get(b"X-Start") == b"GET %b HTTP/1.1" % path
        assert [event[2] for event in await rig.events()] == [units]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get(b"/v1/transactions", method=b"get"), 400),
        (get(b"/v1/transactions", method=b"PURGE"), 501),
        (get(b"/v1/transactions", OVERRIDE), 400),
        (get(b"/v1/transactions", b"x_http_method_override: DELETE"), 400),
        (get(b"/v1/%25%32%65"), 400),
        (get(b"/v1/a%2fb"), 400),
    ],
)
async def test_what_servers_read_differently_reaches_no_server(gateway: Any, request_: bytes, status: int) -> None:
    async with gateway(echo, routes=ROUTES, default=CHEAP) as rig:
        assert (await rig.ask(request_)).status == status
        assert rig.api.requests == []
        assert await rig.events() == []
        assert {method for _, method, _, _ in rig.gateway.context.counters.requests} <= {"GET", "other"}


async def test_fields_that_name_another_path_are_dropped_and_one_that_repeats_the_method_passes(gateway: Any) -> None:
    fields = (b"X-Original-URL: /v1/transactions", b"X-Rewrite-URL: /v1/transactions", b"X-HTTP-Method: GET")
    async with gateway(echo, routes=ROUTES, default=CHEAP) as rig:
        await rig.ask(get(b"/other", *fields))
        (request,) = rig.api.requests
        assert request.get(b"X-Original-URL") is None
        assert request.get(b"X-Rewrite-URL") is None
        assert request.get(b"X-HTTP-Method") == b"GET"


async def test_an_override_costs_the_dearer_of_both_methods_where_the_route_prices_it(gateway: Any) -> None:
    routes = [
        route("/a", "GET", units=DEAR, method_override=True), route("/a", "POST", units=2, method_override=True)
    ]  # fmt: skip
    async with gateway(echo, routes=routes, default=DENIED) as rig:
        assert (await rig.ask(post(b"x", b"X-HTTP-Method-Override: GET", target=b"/a"))).status == 200
        assert [event[2] for event in await rig.events()] == [DEAR]


async def test_head_costs_what_get_costs(gateway: Any) -> None:
    async with gateway(echo, routes=ROUTES, default=CHEAP) as rig:
        await rig.ask(get(b"/v1/transactions", method=b"HEAD"))
        assert [event[2] for event in await rig.events()] == [DEAR]


async def test_a_preflight_needs_no_identity_on_a_route_that_lets_it_pass(gateway: Any) -> None:
    routes = [route("/open", "POST", cors=True), route("/closed", "POST")]
    async with gateway(echo, routes=routes, default=CHEAP) as rig:
        asked = [
            get(b"/open", *PREFLIGHT, key=b"", method=b"OPTIONS"),
            get(b"/closed", *PREFLIGHT, key=b"", method=b"OPTIONS"),
            get(b"/open", PREFLIGHT[0], key=b"", method=b"OPTIONS"),
            post(b"x", *PREFLIGHT, target=b"/open", method=b"OPTIONS"),
        ]
        assert [(await rig.ask(each)).status for each in asked] == [200, 401, 401, 200]
        assert [event[2] for event in await rig.events()] == [1]


# Real servers


@pytest.fixture(scope="module")
def werkzeug() -> Iterator[int]:
    """Flask on werkzeug's server, which merges slashes, decodes once and takes methods in any case."""
    app = flask.Flask(__name__)

    @app.route("/v1/transactions", methods=["GET", "POST"])
    @app.route("/v1/accounts:export")
    def dear() -> flask.Response:
        return flask.Response("x", headers={"X-Served": "dear"})

    @app.route("/<path:rest>", methods=["GET", "POST"])
    def cheap(rest: str) -> flask.Response:
        return flask.Response("x", headers={"X-Served": "cheap"})

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.port
    server.shutdown()


EXPRESS = """
const app = require('express')();
const served = (what) => (request, response) => response.set('X-Served', what).send('x');
app.all('/v1/transactions', served('dear'));
app.all('/v1/accounts\\\\:export', served('dear'));
app.use(served('cheap'));
app.listen(Number(process.argv[1]), '127.0.0.1', () => console.log('ready'));
"""


@pytest.fixture(scope="module")
def express() -> Iterator[int]:
    """Express, which ignores letter case and a final slash. NODE_PATH says where it is."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('express')"], capture_output=True).returncode:
        pytest.skip("needs node with express (npm install express, NODE_PATH)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([node, "-e", EXPRESS, str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield port
        process.kill()


SPELLINGS = [
    get(b"/v1/transactions"),
    get(b"/v1/Transactions"),
    get(b"/V1/TRANSACTIONS/"),
    get(b"/v1/transactions/"),
    get(b"//v1//transactions"),
    get(b"/v1/%74ransactions"),
    get(b"/v1/%54ransactions/"),
    get(b"/v1/accounts%3Aexport"),
    get(b"/v1/Accounts%3aExport/"),
    get(b"/v1/transactions", method=b"HEAD"),
    get(b"/v1/transactions", method=b"get"),
    get(b"/v1/transactions", method=b"Post"),
    get(b"/v1/./transactions"),
    get(b"/v1/x/../transactions"),
    get(b"/v1/transactions%3Fx"),
    get(b"/v1/transactions;x"),
    get(b"/v1%2Ftransactions"),
    get(b"/x", b"X-Original-URL: /v1/transactions"),
]


async def _never_dear_for_little(rig: Rig) -> int:
    """How many of the spellings reached what is dear."""
    reached = 0
    for request in SPELLINGS:
        before = len(await rig.events())
        answer = await rig.ask(request)
        units = [event[2] for event in await rig.events()][before:]
        if answer.get(b"X-Served") == b"dear":
            reached += 1
            assert units == [DEAR], request.partition(b"\r\n")[0]
    return reached


async def test_no_spelling_reaches_what_is_dear_on_werkzeug_for_little(gateway: Any, werkzeug: int) -> None:
    async with gateway(echo, routes=ROUTES, default=CHEAP, upstream=UpstreamTarget(port=werkzeug)) as rig:
        assert await _never_dear_for_little(rig) >= 3


async def test_no_spelling_reaches_what_is_dear_on_express_for_little(gateway: Any, express: int) -> None:
    async with gateway(echo, routes=ROUTES, default=CHEAP, upstream=UpstreamTarget(port=express)) as rig:
        assert await _never_dear_for_little(rig) >= 5
