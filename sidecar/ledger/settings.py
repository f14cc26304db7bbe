"""Section ``ledger``: how holds and settles are made, and what happens when the ledger cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from sidecar.config.fields import FilePath, Milliseconds, Model, Whole, conflict
from sidecar.ledger.keys import PARTITIONS
from sidecar.ledger.proof.chain import KEY_BYTES_MIN


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < KEY_BYTES_MIN:
        raise ValueError(f"must be at least {KEY_BYTES_MIN} bytes long, such as `openssl rand -hex 32` prints")
    return secret


ChainKey = Annotated[SecretStr, AfterValidator(_long_enough)]


class OpenSettings(Model):
    """Requests that may pass without a hold while the ledger is unreachable, if ``on_ledger_failure`` is ``open``."""

    allowance_units: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        default=1_000,
        description="Units that each account may use per process without a check. An account can overspend at most "
        "this number per process in 10 minutes, and never uses more than its last known funds. It is filled again "
        "when what it gave is settled.",
    )
    spool_directory: FilePath | None = Field(default=None, description="Former name of `ledger.spool_directory`.")
    spool_bytes_max: Annotated[Whole, Field(ge=65_536)] | None = Field(
        default=None, description="Former name of `ledger.spool_bytes_max`."
    )


class LedgerSettings(Model):
    """How holds and settles are made."""

    prefix: str = Field(
        default="qs",
        pattern=r"^[A-Za-z0-9_.-]{1,32}$",
        description="First part of every key, so that several ledgers can share a Valkey.",
    )
    partitions: Annotated[Whole, Field(ge=1, le=1_000)] = Field(
        default=PARTITIONS,
        description="Number of hash tags that accounts are spread over. It is part of the data's layout: a ledger with "
        "another number is refused. `sidecar ledger export` and `import` change it.",
    )
    expect: Literal["any", "existing"] = Field(
        default="any",
        description="`any`: an empty Valkey becomes a new ledger. `existing`: it is refused, since its data was lost "
        "or `valkey_url` names another server. Use `existing` once the ledger is in use.",
    )
    state_directory: FilePath | None = Field(
        default=None,
        description="Directory in which a process remembers which ledger it used. A ledger that lost its data since is "
        "then refused at start, whatever `expect` says. Use a volume that survives restarts.",
    )
    spool_directory: FilePath | None = Field(
        default=None,
        description="Directory in which the gateway writes charges (fsync) that Valkey cannot take for longer than a "
        "moment, so that the end of the process does not lose them. The next process settles them. It is made, with "
        "mode 0700, if it is absent; one that is there must be the gateway's own and closed to others. Use a volume "
        "that survives restarts. Default: `spool` in the directory that `STATE_DIRECTORY` names (systemd and the image "
        "set it), or beside the data of an embedded Valkey. Without any, a kill during an outage loses the charges "
        "that wait, and SIGTERM writes them to the log.",
    )
    spool_bytes_max: Annotated[Whole, Field(ge=65_536)] = Field(
        default=67_108_864,
        description="Largest file of a process in it. When it is full, charges wait in memory, and "
        "`on_ledger_failure: open` refuses requests as if closed.",
    )
    chain_key: ChainKey | None = Field(
        default=None,
        description="Secret of at least 32 bytes, the same for all gateways and for `sidecar audit`. With it each "
        "outbox entry proves the one before it (HMAC-SHA-256). Without it nothing is proven. Prefer the file.",
    )
    chain_key_file: FilePath | None = Field(default=None, description="File with that secret.")
    hold_budget_ms: Milliseconds = Field(
        default=250, description="Time that a request waits for its hold. After it `on_ledger_failure` decides."
    )
    settle_delay_ms: Annotated[Whole, Field(ge=0, le=1_000)] = Field(
        default=2,
        description="Time that a charge waits for the next request's hold, so that both go to Valkey in one call "
        "instead of two. 0: no wait. A gateway that is killed loses the charges that it has not sent yet.",
    )
    unknown_account_wait_ms: Milliseconds = Field(
        default=1_500,
        description="With Lago: time that a request of an unknown account waits until the control plane loads the "
        "account. After it the gateway answers 503.",
    )
    breaker_failures: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        default=5,
        description="Number of failed holds in a row that opens the breaker. Requests then do not wait for the ledger.",
    )
    breaker_open_ms: Milliseconds = Field(
        default=1_000, description="Time for which the breaker stays open. After it the gateway tries one hold."
    )
    heartbeat_ms: Milliseconds = Field(
        default=1_000,
        description="Time between two heartbeats of this process. With each it looks whether Valkey is still the "
        "primary, and has the data that it had.",
    )
    window_bytes_max: Annotated[Whole, Field(ge=0, le=1_073_741_824)] = Field(
        default=33_554_432,
        description="Memory for confirmed charges. A Valkey whose data went back (a failover, a restored backup) is "
        "offered them again. What is older is lost then, and counted.",
    )
    instance_ttl_ms: Milliseconds = Field(
        default=10_000,
        description="Age of the last heartbeat at which a process counts as dead. Other processes then release its "
        "holds.",
    )
    batch_operations_max: Annotated[Whole, Field(ge=1, le=4_096)] = Field(
        default=512,
        description="Most holds, settles and releases in one call. Valkey runs no other command during a call.",
    )
    idempotency_ttl_s: Annotated[Whole, Field(ge=1, le=2_592_000)] = Field(
        default=86_400,
        description="Time for which the ledger keeps a charged idempotency key. UK Open Banking requires 24 hours.",
    )
    on_ledger_failure: Literal["closed", "open"] = Field(
        default="closed",
        description="`closed`: the gateway answers 503 while the ledger is unreachable. `open`: requests pass within "
        "`open.allowance_units`.",
    )
    open: OpenSettings = Field(default=OpenSettings(), description="Settings for `on_ledger_failure: open`.")

    @model_validator(mode="after")
    def _fit_together(self) -> LedgerSettings:
        if self.instance_ttl_ms < 3 * self.heartbeat_ms:
            message = "must be at least three times heartbeat_ms: a process may lose one heartbeat"
            raise conflict([("instance_ttl_ms", message)])
        former = self.open
        if self.spool_directory is not None and former.spool_directory not in (None, self.spool_directory):
            raise conflict([("open.spool_directory", "is the former name of ledger.spool_directory, which differs")])
        if self.on_ledger_failure == "open" and self.spool_place is None:
            raise conflict([("spool_directory", "is needed: on_ledger_failure is open")])
        return self

    @property
    def spool_place(self) -> Path | None:
        """The spool's directory, whichever of its names it was given."""
        return self.spool_directory or self.open.spool_directory

    @property
    def spool_bytes(self) -> int:
        """The largest spool, whichever of its names it was given."""
        return self.open.spool_bytes_max or self.spool_bytes_max
