"""Configuration of metering: where OpenMeter is, and how usage events are brought there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from sidecar.basics.go_url import GoUrlError, check_go_url


def check_token(token: str) -> str:
    """Raises ValueError for what cannot stand in a header. The message never holds the token."""
    if not token or not all("!" <= char <= "~" for char in token):
        raise ValueError("a token is one or more printable ASCII characters without spaces")
    return token


def _secret_token(token: SecretStr) -> SecretStr:
    check_token(token.get_secret_value())
    return token


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be an http or https URL with a host, such as https://openmeter.example")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must have neither user nor password; use token or token_file")
    if parts.query or parts.fragment:
        raise ValueError("must have neither query nor fragment")
    return url.rstrip("/")


def _event_source(source: str) -> str:
    try:
        check_go_url(source)
    except GoUrlError as error:
        raise ValueError(f"must be a URI reference as OpenMeter reads it (url.Parse of Go): {error}") from None
    return source


BaseUrl = Annotated[str, Field(max_length=2048), AfterValidator(_base_url)]
Token = Annotated[SecretStr, AfterValidator(_secret_token)]
EventSource = Annotated[str, AfterValidator(_event_source)]


class ArchiveSettings(BaseModel):
    """Files of everything that OpenMeter has accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    directory: str | None = Field(
        default=None,
        min_length=1,
        max_length=2048,
        description="Directory or fsspec URL (`s3://bucket/folder`; needs the extra `archive`) of the archive. Every "
        "entry is written there before it leaves the outbox. If it cannot be written, entries stay in the outbox. "
        "Without it there is no archive.",
    )
    bytes_max: int = Field(
        default=67_108_864, ge=65_536, le=1_073_741_824, description="Size in bytes at which a file ends."
    )
    seconds_max: int = Field(
        default=3_600,
        ge=1,
        le=3_600,
        description="Seconds after which a file ends. It ends with the hour too. A store that is reached by a URL gets "
        "an object for each delivery.",
    )


class MeteringSettings(BaseModel):
    """How the publisher delivers usage events to OpenMeter. Units are last in the names."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    url: BaseUrl | None = Field(
        default=None,
        description="Base URL of a self-hosted OpenMeter. The publisher sends events to <url>/api/v1/events. Managed "
        "OpenMeter (Kong Konnect, v3) cannot be used yet. Without a URL events stay in the outbox.",
    )
    token: Token | None = Field(
        default=None, description="Bearer token for OpenMeter. A self-hosted OpenMeter needs none."
    )
    token_file: Path | None = Field(
        default=None,
        description="File with the token. The publisher reads it at the start and after each 401 or 403.",
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file with the authorities for url. Without it the system's authorities count."
    )
    source: EventSource = Field(
        default="open-banking-api",
        min_length=1,
        max_length=256,
        description="Source of the events, a URI reference such as `open-banking-api` or `//bank.example/eu1`. "
        "OpenMeter counts an event once by source and id. Never change it while the outbox has events.",
    )
    type: str = Field(
        default="api.call",
        min_length=1,
        max_length=256,
        description="Type of the events: the eventType of the meters that count them.",
    )
    batch_events_max: int = Field(default=500, ge=1, le=10_000, description="Most events in one request.")
    batch_bytes_max: int = Field(
        default=1_000_000,
        ge=1_000,
        le=1_048_576,
        description="Largest request body in bytes. nginx and others refuse more than 1 MiB by default.",
    )
    linger_ms: int = Field(
        default=200,
        ge=1,
        le=5_000,
        description="Milliseconds between two readings of an empty outbox. A batch waits this long for events.",
    )
    requests_in_flight_max: int = Field(default=4, ge=1, le=64, description="Most requests at a time.")
    buffer_bytes_max: int = Field(
        default=2_000_000,
        ge=65_536,
        le=268_435_456,
        description="Most bytes of outbox entries that are read but not delivered. In memory an event takes about "
        "four times its size in the outbox.",
    )
    timeout_ms: int = Field(default=10_000, ge=10, le=120_000, description="Milliseconds that one request may take.")
    backoff_ms_min: int = Field(
        default=100,
        ge=1,
        le=60_000,
        description="Upper bound in milliseconds of the random wait before the first retry. It doubles with each "
        "retry.",
    )
    backoff_ms_max: int = Field(
        default=30_000, ge=1, le=600_000, description="Largest upper bound in milliseconds of the random wait."
    )
    retry_after_ms_max: int = Field(
        default=300_000,
        ge=0,
        le=3_600_000,
        description="Longest Retry-After in milliseconds that the publisher follows. It shortens a longer one to this.",
    )
    pause_ms: int = Field(
        default=30_000,
        ge=1,
        le=3_600_000,
        description="Milliseconds between attempts while OpenMeter refuses the publisher itself (401, 403, 404, 407, a "
        "redirect), or refuses one event after another and accepts none.",
    )
    claim_idle_ms: int = Field(
        default=60_000,
        ge=100,
        le=3_600_000,
        description="Milliseconds without activity after which other publishers take over the entries of a publisher.",
    )
    stop_grace_ms: int = Field(
        default=10_000,
        ge=0,
        le=300_000,
        description="Milliseconds that a stop waits for the delivery of entries that were read.",
    )
    retain_s: int = Field(
        default=10_800,
        ge=0,
        le=604_800,
        description="Seconds for which Valkey keeps accepted events, so that the audit can send events again that "
        "OpenMeter lost. 0: none. Keep it well below sink.dedupe.config.expiration (24 h by default): an "
        "event that is sent again after that counts twice. An event takes about 300 bytes: at 100 "
        "requests per second three hours take some 300 MB. If Valkey runs out of memory, these events are "
        "dropped first.",
    )
    retain_entries_max: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="Most outbox entries that each partition keeps, with one to several hundred events each.",
    )
    dead_letters_max: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="Most dead letters in all. If there are more, the publisher deletes the oldest, and OpenMeter "
        "never counts them. A dead letter takes about 1 kB.",
    )
    archive: ArchiveSettings = Field(
        default=ArchiveSettings(), description="Files of everything that OpenMeter has accepted."
    )
    query_timeout_ms: int = Field(
        default=30_000, ge=100, le=600_000, description="Milliseconds that one usage query may take."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> MeteringSettings:
        if self.token is not None and self.token_file is not None:
            raise ValueError("only one of token and token_file can be given")
        if self.backoff_ms_max < self.backoff_ms_min:
            raise ValueError("backoff_ms_max is less than backoff_ms_min")
        return self
