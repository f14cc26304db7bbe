"""Sections ``valkey…`` and ``ledger``: where balances are kept, and what happens when they cannot be reached."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from sidecar.config.fields import FilePath, Milliseconds, Model, Whole, conflict
from sidecar.gateway.settings import check_pair
from sidecar.valkey.url import Cluster, Embedded, Sentinel, Standalone, Topology, parse_valkey_url


def _topology(value: object) -> Topology:
    if isinstance(value, Embedded | Standalone | Sentinel | Cluster):
        return value
    if not isinstance(value, str):
        raise ValueError("should be a URL like valkey://host:6379/0")
    return parse_valkey_url(value)


ValkeyUrl = Annotated[Topology, PlainValidator(_topology, json_schema_input_type=str), PlainSerializer(str)]


class ValkeyTlsSettings(Model):
    """TLS towards Valkey, for the schemes that use it."""

    verify: bool = Field(default=True, description="Check the server's certificate and name.")
    ca_file: FilePath | None = Field(
        default=None, description="PEM file with the authorities, instead of the system's."
    )
    certificate_file: FilePath | None = Field(default=None, description="PEM file with the gateway's own certificate.")
    key_file: FilePath | None = Field(default=None, description="PEM file with its private key.")

    @model_validator(mode="after")
    def _pair_is_complete(self) -> ValkeyTlsSettings:
        check_pair(self.certificate_file, self.key_file)
        return self


class ValkeyEmbeddedSettings(Model):
    """The server that ``embedded:///directory`` starts."""

    appendfsync: Literal["always", "everysec", "no"] = Field(
        default="everysec",
        description="How often it writes through to the disk, hence what a crash of the machine may lose: nothing, one "
        "second, or what the kernel holds. A crash of the gateway loses nothing.",
    )


class OpenSettings(Model):
    """What may pass uncounted while the ledger is out of reach, if ``on_ledger_failure`` is ``open``."""

    allowance_units: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        default=1_000,
        description="Units that each account may use per process in one failure. This is the most that can be "
        "overspent.",
    )
    spool_directory: FilePath | None = Field(
        default=None,
        description="Where these units are written down (fsync) until they can be settled. Survives restarts: a "
        "volume.",
    )
    spool_bytes_max: Annotated[Whole, Field(ge=65_536)] = Field(
        default=67_108_864, description="Largest spool; when it is full, requests are refused as if closed."
    )


class LedgerSettings(Model):
    """How holds and settles are made."""

    prefix: str = Field(
        default="qs",
        pattern=r"^[A-Za-z0-9_.-]{1,32}$",
        description="First part of every key, so that several ledgers share a Valkey.",
    )
    partitions: Annotated[Whole, Field(ge=1, le=100)] = Field(
        default=16,
        description="Into how many hash tags accounts are spread. Part of the data's layout: never change it on a "
        "ledger in use.",
    )
    hold_budget_ms: Milliseconds = Field(
        default=250, description="How long a request waits for its hold, then `on_ledger_failure` decides."
    )
    settle_delay_ms: Annotated[Whole, Field(ge=0, le=1_000)] = Field(
        default=2,
        description="How long a charge waits for the next request's hold to go to Valkey with it, in one call instead "
        "of two; 0 sends it at once. What a gateway that is killed has not sent yet is not charged.",
    )
    first_sight_ms: Milliseconds = Field(
        default=1_500,
        description="With Lago: how long a request of an account that the ledger does not know waits for it to be"
        " brought; then it is answered 503.",
    )
    breaker_failures: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        default=5, description="Holds failed in a row after which nobody waits any more."
    )
    breaker_open_ms: Milliseconds = Field(
        default=1_000, description="How long nobody waits, until one hold is tried again."
    )
    heartbeat_ms: Milliseconds = Field(default=2_000, description="How often this process says that it lives.")
    instance_ttl_ms: Milliseconds = Field(
        default=10_000,
        description="Age of the last heartbeat at which a process counts as dead and its holds are given back.",
    )
    batch_operations_max: Annotated[Whole, Field(ge=1, le=4_096)] = Field(
        default=512, description="Holds, settles and releases in one call. Valkey serves nobody else during a call."
    )
    idempotency_ttl_s: Annotated[Whole, Field(ge=1, le=2_592_000)] = Field(
        default=86_400, description="How long a charged idempotency key is remembered. UK Open Banking: 24 hours."
    )
    on_ledger_failure: Literal["closed", "open"] = Field(
        default="closed",
        description="`closed`: 503 while the ledger is out of reach. `open`: requests pass within "
        "`open.allowance_units`.",
    )
    open: OpenSettings = Field(default=OpenSettings(), description="For `on_ledger_failure: open`.")

    @model_validator(mode="after")
    def _fit_together(self) -> LedgerSettings:
        if self.instance_ttl_ms < 3 * self.heartbeat_ms:
            message = "must be at least three times heartbeat_ms: one lost heartbeat is no death"
            raise conflict([("instance_ttl_ms", message)])
        if self.on_ledger_failure == "open" and self.open.spool_directory is None:
            raise conflict([("open.spool_directory", "is needed: on_ledger_failure is open")])
        return self
