"""Section ``ledger``: how holds and settles are made, and what happens when the ledger cannot be reached."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sidecar.config.fields import FilePath, Milliseconds, Model, Whole, conflict


class OpenSettings(Model):
    """The calls that may pass uncounted while the ledger is out of reach, if ``on_ledger_failure`` is ``open``."""

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
        "of two; 0 sends it at once. A gateway that is killed loses the charges that it has not sent yet.",
    )
    unknown_account_wait_ms: Milliseconds = Field(
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
