"""The health port: checks of the application as a kubelet would make them, and nothing that is not for everybody."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.app.application_checks import ApplicationChecks, CheckFailed
from sidecar.app.data_plane import Health
from sidecar.app.health_endpoints import HealthEndpoints
from sidecar.app.health_settings import ApplicationSettings
from tests.integration.ledger_loader.certificates import self_signed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
TIMEOUT_S = 20.0


class Application:
    """A server that answers each connection with ``answer`` and keeps what it was sent."""

    def __init__(self, answer: bytes, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.requests: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await asyncio.sleep(self.delay_s)
            writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(application: Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(application, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def checks(check: dict[str, Any], timeout_ms: int = 20_000) -> ApplicationChecks:
    return ApplicationChecks(
        ApplicationSettings.model_validate({"checks": {"app/readyz": {**check, "timeout_ms": timeout_ms}}})
    )


async def failure(check: dict[str, Any], timeout_ms: int = 20_000) -> str:
    """What the check says, "" if it is content."""
    try:
        await checks(check, timeout_ms).run("app/readyz")
    except CheckFailed as error:
        return str(error)
    return ""


ANSWERS = {
    "200": (OK, ""),
    "a redirection": (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", ""),
    "100 before 200": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, ""),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", ""),
    "404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "the application answered 404"),
    "500": (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "the application answered 500"),
    "nothing": (b"", "the application closed the connection without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nX: ", "the application closed the connection without an answer"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the application sent an invalid answer"),
    "a head without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "the application sent an invalid answer"),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.values(), ids=ANSWERS)
async def test_an_http_check_is_content_with_200_to_399(answer: bytes, expected: str) -> None:
    async with listening(Application(answer)) as port:
        said = await failure({"http_get": {"port": port}})
    assert said.startswith(expected) if expected else said == ""


async def test_an_http_check_asks_as_it_was_told_to() -> None:
    application = Application(OK)
    async with listening(application) as port:
        get = {"port": port, "path": "/health?full=1", "headers": {"X-Probe": "yes", "Host": "api.example"}}
        assert await failure({"http_get": get}) == ""
    (request,) = application.requests
    line, *fields = request.decode().lower().split("\r\n")
    assert line == "get /health?full=1 http/1.1"
    assert {"x-probe: yes", "host: api.example", "connection: close"} <= set(fields)


async def test_an_https_check_takes_any_certificate_as_a_kubelet_does(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = self_signed(tmp_path, "application")
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    async with listening(Application(OK), context) as port:
        assert await failure({"http_get": {"port": port, "scheme": "HTTPS"}}) == ""


@pytest.mark.parametrize("kind", ["http_get", "tcp_socket", "grpc"])
async def test_an_application_that_is_not_there_fails_every_check(kind: str, unused_tcp_port: int) -> None:
    assert "cannot reach" in await failure({kind: {"port": unused_tcp_port}})


async def test_an_application_that_is_too_slow_fails_in_the_time_that_the_kubelet_gives() -> None:
    async with listening(Application(OK, delay_s=60)) as port:
        said = await failure({"http_get": {"port": port}}, timeout_ms=50)
    assert said == "the application did not answer within 50 ms"


async def test_a_socket_that_accepts_is_all_that_a_tcp_check_wants() -> None:
    async with listening(Application(b"")) as port:
        assert await failure({"tcp_socket": {"port": port}}) == ""


@pytest.fixture
async def health_service() -> AsyncIterator[tuple[int, Any]]:
    """gRPC's own server with its own health service."""
    servicer = grpc_health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, servicer
    finally:
        await server.stop(None)


async def test_a_grpc_check_wants_serving(health_service: tuple[int, Any]) -> None:
    port, servicer = health_service
    long = "x" * 300
    for service, status, expected in (
        ("", health_pb2.HealthCheckResponse.SERVING, ""),
        (long, health_pb2.HealthCheckResponse.SERVING, ""),
        ("accounts", health_pb2.HealthCheckResponse.NOT_SERVING, "the application is NOT_SERVING"),
        ("payments", health_pb2.HealthCheckResponse.UNKNOWN, "the application is UNKNOWN"),
    ):
        await servicer.set(service, status)
        assert await failure({"grpc": {"port": port, "service": service}}) == expected
    assert await failure({"grpc": {"port": port, "service": "none"}}) == "the application answered NOT_FOUND"


async def test_a_grpc_check_of_what_speaks_no_grpc_fails() -> None:
    async with listening(Application(OK)) as port:
        assert await failure({"grpc": {"port": port}}, timeout_ms=2_000) != ""


async def test_who_asks_while_a_check_is_under_way_gets_its_outcome_and_makes_no_second_one() -> None:
    application = Application(OK, delay_s=0.1)
    async with listening(application) as port:
        one = checks({"http_get": {"port": port}})
        await asyncio.gather(*(one.run("app/readyz") for _ in range(50)))
        assert application.connections == 1
        await one.run("app/readyz")
        assert application.connections == 2


async def test_one_who_stops_waiting_does_not_take_the_check_from_the_others() -> None:
    async with listening(Application(OK, delay_s=0.1)) as port:
        one = checks({"http_get": {"port": port}})
        waiting = [asyncio.ensure_future(one.run("app/readyz")) for _ in range(2)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()
        await asyncio.wait_for(waiting[1], TIMEOUT_S)


def endpoints(
    *, metrics: bool = False, drained: Callable[[], Awaitable[bool]] | None = None, ready: bool = True
) -> HealthEndpoints:
    async def health() -> Health:
        return Health(ready, "" if ready else "the gateway is stopping")

    async def page() -> bytes:
        return b"# metrics\n"

    one = checks({"tcp_socket": {"port": 9}})
    return HealthEndpoints(health, page if metrics else None, drained, one)


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


WHAT = {
    "alive": (endpoints(), "/livez", 200, "ok"),
    "ready": (endpoints(), "/readyz", 200, "ok"),
    "not ready": (endpoints(ready=False), "/readyz", 503, "the gateway is stopping"),
    "metrics where they are for everybody": (endpoints(metrics=True), "/metrics", 200, "# metrics"),
    "metrics where they are not": (endpoints(), "/metrics", 404, "nothing here"),
    "drained": (endpoints(drained=yes), "/drained", 200, "drained"),
    "not drained": (endpoints(drained=no), "/drained", 503, "not drained"),
    "a process that does not drain": (endpoints(), "/drained", 404, "nothing here"),
    "a check that fails": (endpoints(), "/app/app/readyz", 503, "cannot reach"),
    "a check that is not configured": (endpoints(), "/app/app/livez", 404, "nothing here"),
    "what the admin side knows": (endpoints(), "/v1/status", 404, "nothing here"),
}


@pytest.mark.parametrize(("of", "path", "status", "words"), WHAT.values(), ids=WHAT)
async def test_what_the_health_port_answers(of: HealthEndpoints, path: str, status: int, words: str) -> None:
    answer = await of.answer("GET", path, "", "")
    assert (answer.status, words in answer.body.decode()) == (status, True), answer.body


async def test_the_health_port_can_only_be_read() -> None:
    everything = endpoints(drained=yes, metrics=True)
    for path in ("/livez", "/readyz", "/metrics", "/drained", "/app/app/readyz"):
        answer = await everything.answer("POST", path, "", "")
        assert (answer.status, answer.headers) == (405, (("Allow", "GET, HEAD"),)), path
    for path in ("/", "/nowhere", "/app/app/livez", "/app/", "/v1/status"):
        assert (await everything.answer("POST", path, "", "")).status == 404, path
    for path in ("/metrics", "/drained"):
        assert (await endpoints().answer("POST", path, "", "")).status == 404, "not configured here"
