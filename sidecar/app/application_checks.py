"""Checks of the application beside the gateway, made as a kubelet would make them.

Where the application can be reached only through the gateway, its probes would be requests without an identity. So the
kubelet asks the gateway's health port, and the gateway asks the application, past its own proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from sidecar.app.health_settings import ApplicationSettings, CheckSettings, GrpcSettings, HttpGetSettings
from sidecar.basics.fault_reasons import reason_of
from sidecar.gateway.http1.framing import HeadParser, ProtocolError
from sidecar.gateway.http1.limits import Limits

if TYPE_CHECKING:
    from grpclib.encoding.base import CodecBase

HEAD_BYTES_MAX: Final = 65_536
_SERVING: Final = 1
# grpc/health/v1/health.proto: HealthCheckRequest {string service = 1}, HealthCheckResponse {ServingStatus status = 1}.
_STATUSES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class CheckFailed(Exception):
    """The application is not as it should be; the message is for the pod's events."""


class ApplicationChecks:
    """Makes the configured checks. One that is under way answers all who ask for it meanwhile, so that the open port is
    no way to flood the application."""

    def __init__(self, settings: ApplicationSettings) -> None:
        self._settings = settings
        self._running: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._settings.checks

    async def run(self, name: str) -> None:
        """Makes the check ``name``.

        Raises:
            CheckFailed: the application refused, answered badly, or did not in time.
            KeyError: there is no such check.
        """
        task = self._running.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._check(self._settings.checks[name]))
            self._running[name] = task
            task.add_done_callback(lambda _: self._running.pop(name, None))
        await asyncio.shield(task)

    async def _check(self, check: CheckSettings) -> None:
        host = self._settings.host
        try:
            async with asyncio.timeout(check.timeout_ms / 1000):
                if check.http_get is not None:
                    await _http_get(host, check.http_get)
                elif check.tcp_socket is not None:
                    await _tcp_socket(host, check.tcp_socket.port)
                elif check.grpc is not None:
                    await _grpc(host, check.grpc)
        except TimeoutError:
            raise CheckFailed(f"the application did not answer within {check.timeout_ms} ms") from None
        except OSError as error:
            raise CheckFailed(f"the gateway cannot reach the application: {reason_of(error)}") from None


async def _tcp_socket(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.transport.abort()


async def _http_get(host: str, check: HttpGetSettings) -> None:
    """Any status from 200 to 399 is good (Kubernetes, "HTTP probes"); a redirection is not followed."""
    fields = {"host": f"[{host}]:{check.port}" if ":" in host else f"{host}:{check.port}"}
    fields |= {"user-agent": "kube-probe/quota-sidecar", "accept": "*/*", "connection": "close"}
    fields |= {name.lower(): value for name, value in check.headers.items()}
    lines = [f"GET {check.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    context = None
    if check.scheme == "HTTPS":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, check.port, ssl=context)
    try:
        writer.write("\r\n".join(lines).encode())
        status = await _status(reader)
    finally:
        writer.transport.abort()
    if not 200 <= status < 400:
        raise CheckFailed(f"the application answered {status}")


async def _status(reader: asyncio.StreamReader) -> int:
    parser = HeadParser((), (), Limits(head_bytes_max=HEAD_BYTES_MAX, target_bytes_max=8192, method_bytes_max=32))
    received, at, searched = b"", 0, 0
    while True:
        data = await reader.read(16_384)
        if not data:
            raise CheckFailed("the application closed the connection without an answer")
        received += data
        try:
            found = parser.response(received, b"GET", at, searched)
            while found is not None and found[0].status < 200:
                at, searched = found[1], 0
                found = parser.response(received, b"GET", at, searched)
        except ProtocolError as error:
            raise CheckFailed(f"the application sent an invalid answer: {error.reason}") from None
        if found is not None:
            return found[0].status
        searched = len(received) - at


async def _grpc(host: str, check: GrpcSettings) -> None:
    # Whoever has no such check needs no HTTP/2 in memory.
    from grpclib.client import Channel, UnaryUnaryMethod
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    channel = Channel(host, check.port, codec=_codec())
    try:
        ask: UnaryUnaryMethod[bytes, bytes] = UnaryUnaryMethod(channel, "/grpc.health.v1.Health/Check", bytes, bytes)
        answer = await ask(_health_request(check.service))
    except GRPCError as error:
        raise CheckFailed(f"the application answered {error.status.name}") from None
    except StreamTerminatedError as error:
        raise CheckFailed(f"the application ended the call early: {error}") from None
    finally:
        channel.close()
    status = _health_status(answer)
    if status != _SERVING:
        raise CheckFailed(f"the application is {_STATUSES[status] if status < len(_STATUSES) else status}")


def _codec() -> CodecBase:
    from grpclib.encoding.base import CodecBase

    class Bytes(CodecBase):
        """Messages are bytes already: two fields do not need protobuf's runtime."""

        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: type[bytes]) -> bytes:
            return message

        def decode(self, data: bytes, message_type: type[bytes]) -> bytes:
            return data

    return Bytes()


def _health_request(service: str) -> bytes:
    name = service.encode()
    length = bytes([len(name)]) if len(name) < 128 else bytes([len(name) & 127 | 128, len(name) >> 7])
    return b"\x0a" + length + name if name else b""


def _health_status(message: bytes) -> int:
    """Field 1 as a varint; absent it is 0. Anything else is no such message."""
    if not message:
        return 0
    if len(message) == 2 and message[0] == 0x08 and message[1] < 128:
        return message[1]
    raise CheckFailed("the application did not send a HealthCheckResponse")
