"""Sections ``listen``, ``upstream`` and ``limits``: where requests come from and go, and how much of them is borne."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from sidecar.config.fields import HOST_NAME, FilePath, Host, Milliseconds, Model, Port, Whole, check_pair, conflict


class ListenTlsSettings(Model):
    """TLS that ends in the gateway."""

    certificate_file: FilePath = Field(description="PEM file with the certificate and its chain.")
    key_file: FilePath = Field(description="PEM file with the private key.")
    key_password: SecretStr | None = Field(default=None, description="Password of the private key.")
    key_password_file: FilePath | None = Field(default=None, description="File with the password of the private key.")
    client_ca_file: FilePath | None = Field(default=None, description=
        "PEM file with the authorities that may issue client certificates.")  # fmt: skip
    client_certificates: Literal["off", "optional", "required"] = Field(
        default="off",
        description="`off`: the gateway asks clients for no certificate. `optional`: it asks. `required`: it refuses "
        "clients without one.",
    )
    minimum_version: Literal["1.2", "1.3"] = Field(
        default="1.2", description="Oldest TLS version that clients may use, in quotes."
    )

    @model_validator(mode="after")
    def _certificates_can_be_checked(self) -> ListenTlsSettings:
        if self.client_certificates != "off" and self.client_ca_file is None:
            message = f"is needed: client_certificates is {self.client_certificates}"
            raise conflict([("client_ca_file", message)])
        return self


class ListenSettings(Model):
    """Where clients connect."""

    host: Host = Field(
        default="0.0.0.0",  # noqa: S104  # a gateway is there to be reached from outside of its pod
        description="Address to listen on; `::` for IPv6 and IPv4.",
    )
    port: Port = Field(default=8080, description="TCP port; 0 takes a free one.")
    workers: Whole = Field(default=1, ge=1, le=64, description="Processes that share the port. Each uses one CPU core.")
    backlog: Whole = Field(
        default=2048,
        ge=1,
        le=65_535,
        description="Connections that wait until they are accepted. The kernel may lower it.",
    )
    reuse_port: bool = Field(
        default=False,
        description="Set SO_REUSEPORT, so that a new version can start before the old one ends. Several workers set "
        "it always.",
    )
    proxy_protocol: Literal["off", "v2"] = Field(
        default="off",
        description="`v2`: each connection begins with a header of the PROXY protocol, version 2, in which a load "
        "balancer says whose connection it is. The gateway closes connections without one, and those of peers that are "
        "not in `trusted_peers`. The client has the trust of its own address, not the load balancer's.",
    )
    tls: ListenTlsSettings | None = Field(default=None, description="TLS. Without it the gateway serves plain HTTP.")


class UpstreamTlsSettings(Model):
    """TLS towards the API."""

    verify: bool = Field(
        default=True,
        description="Check the certificate and the name of the API. Without the check, anybody on the path can read "
        "and change requests.",
    )
    ca_file: FilePath | None = Field(
        default=None, description="PEM file with the authorities, instead of the system's."
    )
    server_name: Host | None = Field(
        default=None, description="Name for SNI and for the certificate, instead of the URL's host."
    )
    certificate_file: FilePath | None = Field(
        default=None, description="PEM file with the gateway's own certificate, for mutual TLS."
    )
    key_file: FilePath | None = Field(default=None, description="PEM file with its private key.")

    @model_validator(mode="after")
    def _pair_is_complete(self) -> UpstreamTlsSettings:
        check_pair(self.certificate_file, self.key_file)
        return self


def _upstream_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL like http://api:8080") from None
    if parts.scheme not in ("http", "https", "unix+http"):
        raise ValueError("should begin with http://, https:// or unix+http://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have a user or password")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or fragment")
    if parts.scheme == "unix+http":
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError("should name a socket with three slashes: unix+http:///run/api.sock")
    elif not parts.hostname or HOST_NAME.fullmatch(parts.hostname) is None:
        raise ValueError("has no host")
    elif port == 0:
        raise ValueError("has the port 0")
    elif parts.path not in ("", "/"):
        raise ValueError("must not have a path: the gateway keeps the path of each request")
    return url


UpstreamUrl = Annotated[str, Field(max_length=2048), AfterValidator(_upstream_url)]


_DROPPED_FIELD = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]{1,64}\*?")
_NEEDED = (
    "host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "expect", "keep-alive", "trailer",
    "max-forwards", "x-fapi-interaction-id", "x-request-id",
)  # fmt: skip


def _dropped_field(name: str) -> str:
    if _DROPPED_FIELD.fullmatch(name) is None:
        raise ValueError(f"{name!r} is neither a field name of 1 to 64 characters nor a beginning like X-Partner-*")
    beginning = name.lower().removesuffix("*")
    for needed in _NEEDED:
        if needed == beginning or (name.endswith("*") and needed.startswith(beginning)):
            raise ValueError(f"{name!r} would remove {needed}, which the gateway needs")
    return name


DroppedField = Annotated[str, AfterValidator(_dropped_field)]


class UpstreamSettings(Model):
    """The API behind the gateway."""

    url: UpstreamUrl | None = Field(
        default=None,
        description="Address of the API: `http://host:port`, `https://host:port` or `unix+http:///path.sock`. A "
        "gateway needs it, unless `original_destination` is set. A control plane does not.",
    )
    original_destination: bool = Field(
        default=False,
        description="Set it if the kernel redirects connections to this process (`sidecar redirect`). Each request "
        "then goes to the address and port that its client asked for, over plain HTTP, and `url` has no "
        "effect.",
    )
    ports: Annotated[tuple[Port, ...], Field(max_length=64)] | None = Field(
        default=None,
        description="With `original_destination`: ports of the API that the gateway serves. null: all ports except "
        "the gateway's own.",
    )
    tls: UpstreamTlsSettings = Field(default=UpstreamTlsSettings(), description="TLS, for an https URL.")
    connect_timeout_ms: Milliseconds = Field(default=2_000, description="Time to connect, TLS included.")
    response_timeout_ms: Milliseconds = Field(
        default=30_000,
        description="Time from the end of a request to the first byte of the answer. After it the gateway answers "
        "504. What that costs is said by `on_response_timeout` of the route.",
    )
    idle_timeout_ms: Milliseconds = Field(
        default=60_000,
        description="Time without a byte from the API in the middle of an answer. After it the gateway cuts the "
        "answer off.",
    )
    connections_max: Whole = Field(
        default=256,
        ge=1,
        le=65_535,
        description="Connections to the API, for each process. Further requests wait, in turn between accounts. One "
        "account never has more than half of them, a quarter in tunnels and streams; requests without a known caller "
        "have a tenth.",
    )
    admission_timeout_ms: Milliseconds = Field(
        default=2_000,
        description="How long a request waits for one of these connections. After it the gateway answers 503 with "
        "`Retry-After`.",
    )
    keepalive_ms: Milliseconds = Field(
        default=55_000,
        description="Time for which the gateway keeps an idle connection. Set it shorter than the API does, which is "
        "often 60 s. `Keep-Alive: timeout=` in an answer of the API shortens it.",
    )
    connection_age_ms: Milliseconds = Field(
        default=600_000,
        description="Age after which a connection is not used again, so that traffic follows the API's name to new "
        "addresses.",
    )
    via: bool = Field(
        default=False,
        description="Add `Via` to requests. RFC 9110 section 7.6.3 asks for it. It is off because servers such as "
        "nginx do not compress answers for requests with `Via`. The gateway finds loops by a field of its own.",
    )
    via_on_answers: bool = Field(default=True, description="Add `Via` (RFC 9110 section 7.6.3) to answers.")
    forwarded: bool = Field(
        default=True,
        description="Set `X-Forwarded-For`, `-Proto` and `-Host`. The gateway keeps those of a request only if it "
        "came from `trusted_peers`.",
    )
    forward_identity: bool = Field(
        default=True,
        description="Tell the API who calls: `X-TPP-Id` (the account), `X-TPP-Organisation-Id` (from the caller's "
        "certificate) and `X-TPP-Resolver`. The gateway removes these fields from every request that has them.",
    )
    drop_fields: Annotated[tuple[DroppedField, ...], Field(max_length=64)] = Field(
        default=(),
        description="Further request header fields that the gateway removes unless the request came from "
        "`trusted_peers`, in every spelling with hyphens and underscores. `X-Partner-*` stands for all names that "
        "begin so. It always removes `Forwarded`, `X-Forwarded-*`, `X-Real-IP`, `True-Client-IP`, `Client-Cert`, "
        "`Client-Cert-Chain`, `ssl-client-*`, `X-Consumer-*`, `Script-Name`, `X-Script-Name`, `Path-Info` and "
        "`Daphne-Root-Path`.",
    )

    @model_validator(mode="after")
    def _tls_is_used(self) -> UpstreamSettings:
        if self.tls.model_fields_set and (self.original_destination or not (self.url or "").startswith("https:")):
            raise conflict([("tls", "is set, but upstream.url is not https")])
        return self

    @model_validator(mode="after")
    def _ports_are_used(self) -> UpstreamSettings:
        if self.ports is not None and not self.original_destination:
            raise conflict([("ports", "has an effect only with original_destination")])
        if self.ports is not None and (not self.ports or 0 in self.ports):
            raise conflict([("ports", "should name ports from 1 to 65535")])
        return self


class ListenerSettings(Model):
    """A further port, with an API of its own; everything else of it is as for the first."""

    port: Port = Field(description="TCP port on `listen.host`; 0 takes a free one.")
    upstream: UpstreamUrl = Field(description="Where its API is, as in `upstream.url`.")

    @model_validator(mode="after")
    def _upstream_is_plain(self) -> ListenerSettings:
        if self.upstream.startswith("https:"):
            raise conflict([("upstream", "cannot be https: only upstream.url has settings for TLS")])
        return self


Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Bytes = Annotated[Whole, Field(ge=256, le=16_777_216)]


class LimitsSettings(Model):
    """What a client, or the API, may ask of this process. Sizes are for one message, connections for one process."""

    method_bytes_max: Annotated[Whole, Field(ge=7, le=256)] = Field(
        default=32, description="Longest method, else 501. The longest registered one has 17 bytes."
    )
    target_bytes_max: Bytes = Field(
        default=8_192, description="Longest request target, else 414. RFC 9112 section 3 asks for at least 8000."
    )
    head_bytes_max: Bytes = Field(
        default=32_768,
        description="Largest head of a request (request line and header), else 431. A head is held in memory until it "
        "is complete.",
    )
    answer_head_bytes_max: Bytes | None = Field(
        default=None,
        description="Largest head of an answer, else 502. null: 16 times `head_bytes_max` and 64 KiB, more than an "
        "answer has that repeats the request's header.",
    )
    fields_max: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        default=100, description="Most header fields, else 431. A field costs more than its bytes."
    )
    body_bytes_max: Annotated[Whole, Field(ge=1)] | None = Field(
        default=10_485_760,
        description="Largest request body, else 413. null: any size. The gateway streams long bodies, so the limit "
        "protects the API. The largest bodies in Open Banking are payment files of some MB.",
    )
    chunk_extension_bytes_max: Annotated[Whole, Field(ge=0, le=65_536)] = Field(
        default=1_024,
        description="Chunk extensions in one message, else 400. Clients have no use for them.",
    )
    trailer_bytes_max: Bytes = Field(
        default=8_192, description="Largest trailer section, else 431. It is held in memory until it is complete."
    )
    trailer_fields_max: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        default=32, description="Most trailer fields, else 431."
    )
    connections_max: Count = Field(
        default=10_000,
        description="Client connections, from accept on. From four fifths on, idle connections and those without an "
        "identified caller give way (docs/admission.md). The gateway refuses more with 503. If the process may "
        "not have so many file descriptors, it is less.",
    )
    handshakes_max: Count = Field(
        default=256,
        description="Connections whose TLS handshake or PROXY header is awaited, at most a quarter of "
        "`connections_max`. Beyond it the oldest is closed.",
    )
    handshake_timeout_ms: Milliseconds = Field(
        default=5_000, description="Time from accept to the end of the TLS handshake."
    )
    head_buffers_bytes: Annotated[Whole, Field(ge=1_048_576, le=17_179_869_184)] = Field(
        default=16_777_216,
        description="What heads that are not complete, and requests sent before the answer to the one before, may take "
        "in one process. From four fifths on the oldest of them are refused with 503.",
    )
    requests_per_connection_max: Count | None = Field(
        default=None,
        description="Requests after which the gateway closes a client connection, so that load balancers spread "
        "clients again. null: any number.",
    )
    header_timeout_ms: Milliseconds = Field(
        default=10_000,
        description="Time from the first byte of a request to the end of its head, else 408.",
    )
    idle_timeout_ms: Milliseconds = Field(
        default=75_000,
        description="Time between two requests on one connection. Set it longer than the load balancer in front does.",
    )
    body_timeout_ms: Milliseconds = Field(
        default=30_000, description="Time without a byte in the middle of a request body, else 408."
    )
    write_timeout_ms: Milliseconds = Field(
        default=60_000,
        description="Time in which a client takes no byte of an answer. After it the gateway closes the connection.",
    )
    stream_idle_timeout_ms: Milliseconds = Field(
        default=600_000,
        description="Time without a byte in either direction of an upgraded connection (WebSocket), and without a "
        "byte of an answer that is a stream of events (`text/event-stream` and its like).",
    )
    body_deadline_ms: Milliseconds = Field(
        default=600_000, description="Time from the first byte of a request body to its last, else 408."
    )
    answer_deadline_ms: Milliseconds = Field(
        default=3_600_000,
        description="Time from the head of an answer to its last byte. After it the gateway closes the connection. It "
        "does not apply to upgraded connections and streams of events.",
    )
    min_bytes_per_second: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        default=1_024,
        description="What a client must send of a body after `body_timeout_ms`, and take of an answer after "
        "`write_timeout_ms`, on average. 0: any rate.",
    )
    request_buffer_bytes: Annotated[Whole, Field(ge=1, le=16_777_216)] = Field(
        default=65_536,
        description="How much of a request body the gateway gathers before the call is charged and the API hears of "
        "it. A longer body goes on when so much has arrived.",
    )
    request_buffers_bytes: Annotated[Whole, Field(ge=1_048_576, le=17_179_869_184)] = Field(
        default=33_554_432,
        description="What all bodies that are being gathered may take in one process. Beyond it the gateway stops "
        "reading bodies until there is room. No account takes more than half of it.",
    )
    unpaid_per_second: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = Field(
        default=50.0,
        description="Answers a second that one account may have without a charge: errors, and calls that got no "
        "answer. Its next calls then get 429. All gateways count together. 0: any number.",
    )
    unpaid_burst: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        default=500, description="So many of them may come at once."
    )
    free_per_second: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = Field(
        default=200.0,
        description="Requests a second to free routes from one IPv4 address or IPv6 /64. More get 429. Behind "
        "`trusted_peers` it is the address that they forward. Each process counts on its own. 0: any number.",
    )
    free_burst: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        default=2_000, description="So many of them may come at once."
    )
    drain_delay_ms: Annotated[Whole, Field(ge=0, le=86_400_000)] = Field(
        default=0,
        description="Time after SIGTERM in which the gateway still serves new connections, so that load balancers "
        "notice. Its readiness fails meanwhile, and each answer closes its connection. It does not apply "
        "to SIGINT.",
    )
    drain_timeout_ms: Milliseconds = Field(
        default=30_000,
        description="Time after the delay in which requests under way may end. Keep the sum of both below the pod's "
        "terminationGracePeriodSeconds.",
    )
    buffer_bytes_high: Bytes = Field(
        default=65_536,
        description="Bytes waiting in one direction at which the gateway stops reading from their source.",
    )
    buffer_bytes_low: Annotated[Whole, Field(ge=0, le=16_777_216)] = Field(
        default=16_384, description="Bytes waiting at which it reads again."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> LimitsSettings:
        if self.head_bytes_max < self.method_bytes_max + self.target_bytes_max + 16:
            raise conflict([("head_bytes_max", "must leave room for method_bytes_max and target_bytes_max")])
        if self.buffer_bytes_low >= self.buffer_bytes_high:
            raise conflict([("buffer_bytes_low", "must be below buffer_bytes_high")])
        return self


class CreditHeadersSettings(Model):
    """Header fields that tell callers what they have left."""

    credits: bool = Field(default=True, description="`X-Credits-Remaining` and `X-Credits-Charged`.")
    rate_limit: bool = Field(
        default=True,
        description="`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers). `credit`, the calls "
        "that the credit pays for, is present only if all prices of the account have the model standard.",
    )


def check_documentation_url(url: str) -> str:
    """Answer an http(s) URL that can stand in an error's body. Raises ``ValueError``."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or not url.isprintable()
    ):
        raise ValueError("should be a URL like https://developer.bank.example/errors")
    return url
