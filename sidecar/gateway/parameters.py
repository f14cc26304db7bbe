"""Everything the proxy can be told, in one place. Times in seconds, sizes in bytes."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from sidecar.gateway.http1.limits import Limits


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """The API behind the gateway. ``path``: a Unix socket instead of host and port."""

    host: str = "127.0.0.1"
    port: int = 80
    path: str | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_hostname: str | None = None

    @property
    def authority(self) -> bytes:
        """Host field for requests that came without one (HTTP/1.0)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OriginalDestinations:
    """In place of one target: where each client wanted to go before the kernel redirected it.

    Attributes:
        ports: those that are served; None for any.
        own_ports: the gateway's, which are never an API: forwarding there would go round in circles.
    """

    ports: frozenset[int] | None = None
    own_ports: frozenset[int] = frozenset()

    def serves(self, port: int) -> bool:
        """Whether a request may be forwarded there."""
        return port not in self.own_ports and (self.ports is None or port in self.ports)

    def __str__(self) -> str:
        return "original destination"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    limits: Limits = field(default_factory=Limits)
    answer_head_bytes_max: int = 0
    """Largest head of an answer; 0 for `context.answer_limits` of ``limits``."""
    header_timeout_s: float = 10.0
    """408 and close. From the first byte of a head to its end; what a slow-header attack runs into."""
    idle_timeout_s: float = 75.0
    """Close. A kept-alive client connection without a request; longer than the 60 s of common load balancers."""
    body_timeout_s: float = 30.0
    """408 and close. Between two pieces of a request body."""
    connect_timeout_s: float = 2.0
    """504. To connect to the upstream, TLS included."""
    response_timeout_s: float = 30.0
    """504. From the request's end to the head of the upstream's response."""
    upstream_idle_timeout_s: float = 60.0
    """Cut. Between two pieces of the upstream's response."""
    write_timeout_s: float = 60.0
    """Cut. A client that takes nothing of its response."""
    stream_idle_timeout_s: float = 600.0
    """Close. An upgraded connection on which nothing moves, and an answer that is a stream of events."""
    body_deadline_s: float = 600.0
    """408 and close. A request body, from its first byte to its last."""
    answer_deadline_s: float = 3600.0
    """Cut. An answer, from its head to its last byte, that is no stream of events."""
    bytes_per_second_min: int = 1024
    """408, or cut. What a client sends of a body, and takes of an answer, after a grace of one time-out; 0 for any."""
    request_buffer_bytes: int = 65_536
    """A body is gathered up to here before the call is charged and goes to the API."""
    request_buffers_bytes: int = 33_554_432
    """What all bodies that are being gathered may have together; beyond it reading stops."""
    keepalive_s: float = 55.0
    """How long an idle upstream connection is kept; shorter than what servers keep it for."""
    upstream_age_s: float = 600.0
    """An older upstream connection is not used again, so that traffic follows the API to new addresses."""
    upstream_connections_max: int = 256
    upstream_waiting_max: int = 4096
    """503 beyond it. Requests that wait for one of the connections; of one account at most half of them."""
    admission_timeout_s: float = 2.0
    """503. How long a request waits for one of the connections."""
    connections_max: int = 10_000
    """Accepted and closed at once beyond it; from four fifths on, others give way."""
    handshakes_max: int = 256
    """Connections whose handshake is under way; at most a quarter of ``connections_max``. The oldest gives way."""
    handshake_timeout_s: float = 5.0
    """Close. From accept to the end of the TLS handshake, with the PROXY header before it."""
    head_buffers_bytes: int = 16_777_216
    """What heads that are not complete, and requests that wait for the one before them, may take together."""
    free_per_second: float = 0.0
    """429. Requests of one peer to free routes; 0 for any number."""
    free_burst: int = 2_000
    destinations_max: int = 256
    """Closed at once beyond it. Addresses and ports that redirected clients wanted to go to at one time."""
    buffer_bytes_high: int = 262_144
    """What either direction of a request may have unsent in memory before its sender is paused."""
    buffer_bytes_low: int = 65_536
    requests_per_connection_max: int = 0
    """Closes a client connection after so many, so that load balancers spread anew; 0 for any number."""
    credit_headers: bool = True
    rate_limit_headers: bool = True
    forwarded_headers: bool = True
    forward_identity: bool = True
    """The API is told who calls: `sidecar.identity.types.identified`."""
    drop_fields: tuple[bytes, ...] = ()
    """Fields of peers that are not trusted, besides `context.UNTRUSTED_FIELDS`; ``x-partner-*`` is a beginning."""
    via: bytes = b"quota-sidecar"
    """The gateway's name in Via."""
    via_on_requests: bool = False
    via_on_answers: bool = True
    error_format: str = "problem"
    error_documentation_url: str = ""
    access_log: str = "errors"
    log_lines_max: int = 10
