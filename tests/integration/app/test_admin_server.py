"""The admin side's servers on their own: real sockets, requests of every shape."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
from aiohttp import web

from sidecar.app import admin_server
from sidecar.app.admin_endpoints import AdminEndpoints
from sidecar.app.admin_server import AdminServer
from sidecar.app.admin_web import AdminWebServer
from sidecar.app.data_plane import Health
from sidecar.app.settings import AdminSettings
from sidecar.basics.errors import SetupError

METRICS = b"# TYPE a counter\na_total 1\n" * 20_000


class Accounts:
    async def page(self, after: str, limit: int) -> list[str]:
        return [name for name in ("a/b", "tpp-1", "tpp-2") if name > after][:limit]

    async def detail(self, account: str) -> dict[str, Any] | None:
        return {"id": account} if account in ("a/b", "tpp-1") else None


Status = Callable[[], Awaitable[Mapping[str, Any]]]


def endpoints_of(status: Status | None, token: str | None, metrics: bytes) -> AdminEndpoints:
    async def health() -> Health:
        return Health(False, "the ledger is out of reach")

    async def page() -> bytes:
        return metrics

    async def usual() -> Mapping[str, Any]:
        return {"ready": True}

    return AdminEndpoints(health, page, status or usual, usual, Accounts(), token)


@asynccontextmanager
async def served(
    status: Status | None = None, token: str | None = None, metrics: bytes = METRICS
) -> AsyncIterator[tuple[AdminServer, int]]:
    server = AdminServer("admin", "127.0.0.1", 0, endpoints_of(status, token, metrics))
    port = await server.start()
    try:
        yield server, port
    finally:
        await server.close()


@asynccontextmanager
async def served_by(kind: str, status: Status | None = None, token: str | None = None) -> AsyncIterator[int]:
    """The port of a gateway's server or of a control plane's; both have to answer alike."""
    if kind == "gateway":
        async with served(status, token) as (_, port):
            yield port
        return

    async def no_webhooks(request: web.Request) -> web.Response:
        raise AssertionError(request.path)

    server = AdminWebServer(
        AdminSettings(port=0), endpoints_of(status, token, METRICS), webhooks=no_webhooks, field_bytes_max=8192
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.close()


of_both = pytest.mark.parametrize("kind", ["gateway", "control plane"])


async def exchange(port: int, sent: bytes, *, half_close: bool = False, answers_min: int = 1) -> bytes:
    """What the server writes until it closes, or has answered so often and then says nothing more for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    if half_close:
        writer.write_eof()
    received = b""
    while True:
        try:
            enough = received.count(b"HTTP/1.1 ") >= answers_min
            data = await asyncio.wait_for(reader.read(65536), 0.5 if enough else 30)
        except TimeoutError:
            break
        if not data:
            break
        received += data
    writer.close()
    return received


def answers(received: bytes, methods: list[bytes]) -> list[tuple[int, bytes]]:
    """Statuses and bodies, as h11 reads them."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(received)
    client.receive_data(b"")
    found = []
    for number, method in enumerate(methods):
        if number:
            client.start_next_cycle()
        client.send(h11.Request(method=method, target=b"/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        status, body = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert not isinstance(event, h11.ConnectionClosed), received[:300]
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, body))
    return found


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


@of_both
@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("/livez", 200, "ok"),
        ("/readyz", 503, "the ledger is out of reach"),
        ("/v1/status", 200, '"ready":true'),
        ("/v1/accounts?limit=2", 200, '{"accounts":["a/b","tpp-1"],"next_after":"tpp-1"}'),
        ("/v1/accounts?after=tpp-1", 200, '{"accounts":["tpp-2"],"next_after":null}'),
        ("/v1/accounts?limit=0", 400, "limit"),
        ("/v1/accounts?limit=%D9%A1", 400, "limit"),
        ("/v1/accounts?" + "a=1&" * 50, 400, "fields"),
        ("/v1/accounts/tpp-1", 200, '{"id":"tpp-1"}'),
        ("/v1/accounts/a%2Fb", 200, '{"id":"a/b"}'),
        ("/v1/accounts/a/b", 404, "nothing"),
        ("/v1/accounts/", 404, "nothing"),
        ("/v1/accounts/none", 404, "none"),
        ("/", 404, "nothing"),
        ("//livez", 404, "nothing"),
    ],
)
async def test_a_target_has_its_answer(kind: str, target: str, status: int, said: str) -> None:
    async with served_by(kind) as port:
        [(found, body)] = answers(await exchange(port, get(target, "Connection: close")), [b"GET"])
    assert (found, said in body.decode()) == (status, True), body


@of_both
@pytest.mark.parametrize("target", ["/livez", "/v1/status", "/nothing", "/webhooks/lago"])
async def test_an_answer_does_not_name_the_software(kind: str, target: str) -> None:
    async with served_by(kind) as port:
        received = await exchange(port, get(target, "Connection: close"))
    assert received.startswith(b"HTTP/1.1 ")
    assert b"\r\nserver:" not in received.lower()


@of_both
async def test_head_has_the_fields_of_get_and_no_body_and_others_are_told_what_is_allowed(kind: str) -> None:
    async with served_by(kind) as port:
        received = await exchange(port, get("/metrics", method="HEAD"))
        head, _, rest = received.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(METRICS)}".encode() in head
        assert rest == b""
        received = await exchange(port, get("/metrics", method="DELETE"))
        assert received.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: GET, HEAD\r\n" in received
        assert (await exchange(port, get("/nowhere", method="DELETE"))).startswith(b"HTTP/1.1 404 ")


@of_both
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_another_method_is_405_where_there_is_something_and_404_where_there_is_nothing(
    kind: str, method: str, body: bytes
) -> None:
    length = [f"Content-Length: {len(body)}"] if body else []
    known = ("/livez", "/readyz", "/metrics", "/v1/status", "/v1/process", "/v1/accounts", "/v1/accounts/tpp-1")
    async with served_by(kind) as port:
        for path in known:
            received = await exchange(port, get(path, "Connection: close", *length, method=method) + body)
            assert received.startswith(b"HTTP/1.1 405 "), path
            assert b"\r\nAllow: GET, HEAD\r\n" in received
        for path in ("/", "/nowhere", "/v1", "/v1/accounts/", "/v1/accounts/a/b", "/webhooks"):
            received = await exchange(port, get(path, "Connection: close", *length, method=method) + body)
            assert received.startswith(b"HTTP/1.1 404 "), path
            assert b"Allow" not in received


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_webhooks_can_only_be_posted_and_are_nowhere_without_a_control_plane(method: str) -> None:
    asked = get("/webhooks/lago", "Connection: close", method=method)
    async with served_by("control plane") as port:
        received = await exchange(port, asked)
        assert received.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: POST\r\n" in received
        assert (await exchange(port, get("/webhooks/other", "Connection: close", method="POST"))).startswith(
            b"HTTP/1.1 404 "
        )
    async with served_by("gateway") as port:
        assert (await exchange(port, asked)).startswith(b"HTTP/1.1 404 ")


async def test_requests_sent_ahead_are_answered_in_order_on_one_connection() -> None:
    sent = get("/livez") + get("/metrics") + get("/v1/accounts/tpp-1") + get("/livez", "Connection: close")
    async with served() as (_, port):
        received = await exchange(port, sent, half_close=False)
    found = answers(received, [b"GET"] * 4)
    assert [status for status, _ in found] == [200] * 4
    assert found[1][1] == METRICS
    assert received.count(b"Connection: close") == 1


@pytest.mark.parametrize("sent", [b"GET /livez HTTP/1.0\r\n\r\n", get("/livez", "Connection: close")])
async def test_who_asks_once_gets_the_answer_and_the_end(sent: bytes) -> None:
    async with served() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        received = await asyncio.wait_for(reader.read(), 5)
        assert answers(received, [b"GET"]) == [(200, b"ok\n")]
        assert b"\r\nConnection: close\r\n" in received
        writer.close()


async def test_who_sends_its_requests_and_closes_its_side_gets_all_answers() -> None:
    for sent in (get("/metrics") + get("/livez"), get("/metrics") + get("/livez") + b"GET /live"):
        async with served() as (server, port):
            received = await exchange(port, sent, half_close=True)
            assert [status for status, _ in answers(received, [b"GET"] * 2)] == [200, 200]
            assert not server.connections
    async with served() as (server, port):
        assert await exchange(port, b"GET /livez HT", half_close=True) == b""
        assert not server.connections


async def test_a_head_that_trickles_in_is_read() -> None:
    async with served() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, len(request := get("/livez", "Connection: close")), 3):
            writer.write(request[at : at + 3])
            await asyncio.sleep(0)
        assert answers(await reader.read(), [b"GET"]) == [(200, b"ok\n")]
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 20_000 + b"\r\n\r\n", 431),
        (get("/livez", "Content-Length: 3") + b"abc", 413),
        (get("/livez", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", 413),
        (get("/livez", "Content-Length: 3", "Content-Length: 3") + b"abc", 400),
        (get("a:1", method="CONNECT"), 501),
    ],
)
async def test_what_is_no_request_here_is_told_so_and_the_connection_ends(sent: bytes, status: int) -> None:
    async with served() as (_, port):
        received = await exchange(port, sent + get("/livez"))
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["status"] == status


@of_both
@pytest.mark.parametrize("field", ["", "Authorization: Bearer wrong", "Authorization: Basic dG9rZW4="])
async def test_the_token_is_asked_for_and_a_doubled_one_is_none(kind: str, field: str) -> None:
    fields = [field] if field else []
    async with served_by(kind, token="token-0123456789abc") as port:
        [(status, body)] = answers(await exchange(port, get("/v1/status", *fields)), [b"GET"])
        assert (status, b"token-" in body) == (401, False)
        good = "Authorization: Bearer token-0123456789abc"
        assert answers(await exchange(port, get("/v1/status", good)), [b"GET"])[0][0] == 200
        assert answers(await exchange(port, get("/v1/status", good, good)), [b"GET"])[0][0] == 401
        assert answers(await exchange(port, get("/livez")), [b"GET"])[0][0] == 200


@of_both
async def test_a_failure_inside_is_500_and_the_connection_goes_on(kind: str) -> None:
    async def broken() -> Mapping[str, Any]:
        raise ConnectionError("secret-host:6379 is out of reach")

    async with served_by(kind, status=broken) as port:
        found = answers(await exchange(port, get("/v1/status") + get("/livez"), answers_min=2), [b"GET"] * 2)
    assert [status for status, _ in found] == [500, 200]
    assert b"secret-host" not in found[0][1]


async def test_who_says_nothing_is_let_go_and_so_is_who_does_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(admin_server, "IDLE_TIMEOUT_S", 0.1)
    async with served() as (server, port):
        for sent in (b"", b"GET /livez HT", get("/livez"), get("/livez") + b"GET "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with_answer = await asyncio.wait_for(_read_all(reader), 5)
            assert with_answer.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
            writer.close()
        assert not server.connections


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return reader._buffer  # type: ignore[attr-defined,no-any-return]


async def test_a_connection_that_only_waits_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "CONNECTIONS_MAX", 2)
    async with served() as (_, port):
        (first, _), (second, _) = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert answers(await exchange(port, get("/livez")), [b"GET"])[0][0] == 200
        assert await _read_all(first) == b""
        assert not second.at_eof()


async def test_more_connections_with_a_request_than_there_may_be_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "CONNECTIONS_MAX", 2)
    entered, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> Mapping[str, Any]:
        entered.release()
        await go_on.wait()
        return {}

    async with served(status=slow) as (_, port):
        asked = [asyncio.ensure_future(exchange(port, get("/v1/status", "Connection: close"))) for _ in range(2)]
        for _ in asked:
            await entered.acquire()
        assert await exchange_or_reset(port, get("/livez")) == b""
        go_on.set()
        assert [answers(await each, [b"GET"])[0][0] for each in asked] == [200, 200]
        assert answers(await exchange(port, get("/livez")), [b"GET"])[0][0] == 200


async def exchange_or_reset(port: int, sent: bytes) -> bytes:
    try:
        return await exchange(port, sent)
    except ConnectionResetError:
        return b""


async def test_at_the_end_an_answer_under_way_is_finished_and_idle_connections_close() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> Mapping[str, Any]:
        entered.set()
        await go_on.wait()
        return {"ready": True}

    async with served(status=slow) as (server, port):
        idle = await asyncio.open_connection("127.0.0.1", port)
        busy = await asyncio.open_connection("127.0.0.1", port)
        busy[1].write(get("/v1/status"))
        await entered.wait()
        closing = asyncio.create_task(server.close())
        assert await asyncio.wait_for(idle[0].read(), 5) == b""
        go_on.set()
        received = await asyncio.wait_for(busy[0].read(), 5)
        await closing
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in received
    for _, writer in (idle, busy):
        writer.close()


async def test_at_the_end_a_large_answer_is_taken_by_a_slow_reader_and_nobody_waits_for_one_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_server, "CLOSE_TIMEOUT_S", 1.0)
    async with served(metrics=METRICS * 40) as (server, port):
        slow, deaf = [await asyncio.open_connection("127.0.0.1", port, limit=4096) for _ in range(2)]
        for _, writer in (slow, deaf):
            writer.write(get("/metrics"))
        head = await slow[0].readuntil(b"\r\n\r\n")
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0.2)
        assert not closing.done()
        body = await asyncio.wait_for(slow[0].read(), 5)
        assert f"Content-Length: {len(body)}\r\n".encode() in head
        assert len(body) == 40 * len(METRICS)
        await asyncio.wait_for(closing, 5)
        deaf[1].transport.abort()
        slow[1].close()


@pytest.mark.parametrize("leaves", ["with a reset", "without a word"])
async def test_who_goes_away_ends_the_work_for_it(leaves: str) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> Mapping[str, Any]:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return {}

    async with served(status=slow) as (server, port):
        if leaves == "without a word":
            # That looks like the end of what a client sends, after which it may still wait: the time limit ends it.
            server.answer_timeout_s = 0.2
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/v1/status"))
        await entered.wait()
        if leaves == "with a reset":
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)


async def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with served() as (server, _):
            with pytest.raises(SetupError, match=f"admin.port: port {port} is in use on 127.0.0.1"):
                await AdminServer("admin", "127.0.0.1", port, server.endpoints).start()


async def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin_server.sock"
    async with served() as (other, _):
        server = AdminServer("admin", "127.0.0.1", 0, other.endpoints, socket_path=str(path))
        assert await server.start() == 0
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(get("/livez", "Connection: close"))
        assert answers(await reader.read(), [b"GET"]) == [(200, b"ok\n")]
        writer.close()
        await server.close()
    assert not path.exists()
