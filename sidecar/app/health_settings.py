"""Section ``health``: an open port for who looks after the process from outside, a kubelet above all."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from sidecar.config.fields import Host, Milliseconds, Model, Port, conflict

CHECKS_MAX: Final = 256
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,252})/(?:livez|readyz|startupz|poststart|prestop)")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_PATH: Final = re.compile(r"/[!-~]{0,4095}")


def _path(path: str) -> str:
    text = path if path.startswith("/") else "/" + path
    if _PATH.fullmatch(text) is None:
        raise ValueError("should be a path, percent-encoded where it is not visible ASCII")
    return text


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if _HEADER_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a field (RFC 9110 section 5.1)")
        if not value.isprintable():
            raise ValueError(f"the value of {name} should be one line")
    return headers


CheckPort = Annotated[Port, Field(ge=1)]


class HttpGetSettings(Model):
    """As a kubelet's `httpGet`: any status from 200 to 399 is good."""

    port: CheckPort = Field(description="Port of the application.")
    path: Annotated[str, AfterValidator(_path)] = Field(
        default="/", description="Path, with the query if there is one."
    )
    scheme: Literal["HTTP", "HTTPS"] = Field(
        default="HTTP", description="With HTTPS the gateway verifies no certificate, as a kubelet does."
    )
    headers: Annotated[dict[str, str], Field(max_length=64), AfterValidator(_headers)] = Field(
        default={}, description="Header fields of the request."
    )


class TcpSocketSettings(Model):
    """As a kubelet's `tcpSocket`: a connection that is accepted is good."""

    port: CheckPort = Field(description="Port of the application.")


class GrpcSettings(Model):
    """As a kubelet's `grpc`: the status SERVING of `grpc.health.v1.Health/Check` is good."""

    port: CheckPort = Field(description="Port of the application.")
    service: str = Field(default="", max_length=1024, description="Name of the service.")


class CheckSettings(Model):
    """One check of the application: exactly one of the three."""

    http_get: HttpGetSettings | None = Field(default=None, description="Check over HTTP.")
    tcp_socket: TcpSocketSettings | None = Field(default=None, description="Check that it accepts a connection.")
    grpc: GrpcSettings | None = Field(default=None, description="Check over gRPC.")
    timeout_ms: Milliseconds = Field(default=1_000, description="Time for the whole check.")

    @model_validator(mode="after")
    def _is_one(self) -> CheckSettings:
        given = [name for name in ("http_get", "tcp_socket", "grpc") if getattr(self, name) is not None]
        if len(given) != 1:
            text = f"has {' and '.join(given)}" if given else "has none"
            raise conflict([("", f"{text}: it should have one of http_get, tcp_socket, grpc")])
        return self


def _names(checks: dict[str, CheckSettings]) -> dict[str, CheckSettings]:
    for name in checks:
        if _NAME.fullmatch(name) is None:
            raise ValueError(
                f"{name!r} should be a container's name, a slash, and livez, readyz, startupz, poststart or prestop"
            )
    return checks


class ApplicationSettings(Model):
    """Checks of the application beside the gateway, for probes that cannot reach it but through the gateway."""

    host: Host = Field(default="127.0.0.1", description="Address of the application; in a pod, the pod's address.")
    checks: Annotated[dict[str, CheckSettings], Field(max_length=CHECKS_MAX), AfterValidator(_names)] = Field(
        default={},
        description="Checks by `<container>/<livez, readyz, startupz, poststart or prestop>`. `/app/<that name>` on "
        "the health port runs one.",
    )


class HealthSettings(Model):
    """A port without any token: `/livez`, `/readyz`, `/drained`, checks of the application, and metrics if wanted."""

    host: Host = Field(default="0.0.0.0", description="Address to listen on; `::` for IPv6 and IPv4.")  # noqa: S104
    port: Port | None = Field(default=None, description="TCP port; 0 takes a free one; null: no health port.")
    metrics: bool = Field(
        default=False,
        description="Serve `/metrics` too. It names accounts and their credit: set it only where nobody but "
        "Prometheus can reach this port.",
    )
    application: ApplicationSettings = Field(
        default=ApplicationSettings(), description="Checks of the application beside the gateway."
    )
