"""How the Lago stand-in behaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

PaymentMode = Literal["succeed", "fail", "hold"]


@dataclass(frozen=True, slots=True)
class DefaultTax:
    """A tax of the organisation, for customers without taxes of their own. ``rate`` is in per cent."""

    code: str
    rate: Decimal
    name: str = ""


@dataclass(frozen=True, slots=True)
class LagoConfig:
    """``api_key`` is the bearer token of the REST part, ``hmac_key`` signs webhooks; neither is shown by ``repr``.

    ``issuer`` is the ``iss`` of JWT signatures (Lago's ``LAGO_API_URL``). Empty: the address at which the first
    request arrives.

    ``period_s``: an extension that Lago lacks. Every plan bills in periods of so many seconds, aligned to the Unix
    epoch, ``period_delay_s`` after a period's end, as Lago bills ten minutes into the day; fees are prorated by
    seconds.

    ``bill_minute`` is the minute of the hour at which periods that have ended are billed (Lago: ``clock.rb``, 10).
    ``auto_bill``: jobs that are due run each second of real time while the application is up.

    ``premium``: plan overrides are allowed and ``refresh_wallets_s`` is heeded. Without it, as in an unlicensed Lago,
    a wallet's ongoing balance moves on top-ups, voids, invoices and edits only. ``refresh_wallets_s`` 0 means never.

    ``finalize_zero_invoices`` False makes invoices without any amount ``closed``, which no answer shows.

    ``webhook_retry_waits_s``: the waits before the second, third, … attempt; Lago makes three attempts.
    ``events_batch_max`` is Lago's ``LAGO_EVENTS_BATCH_MAX_LENGTH``.
    ``version`` is what ``GET /health`` says; nothing else depends on it.
    ``now`` answers Unix seconds; ``seed`` fixes ids, shuffles and draws of faults.
    """

    api_key: str = field(default="lago-sandbox-key", repr=False)
    hmac_key: str = field(default="lago-sandbox-hmac-key", repr=False)
    organization_id: str = "5f4cbb4c-3a8a-4a3c-9f35-6ad5c2a9e001"
    issuer: str = ""
    invoice_grace_period_days: int = 0
    period_s: int | None = None
    period_delay_s: int = 0
    timezone: str = "UTC"
    taxes: tuple[DefaultTax, ...] = ()
    bill_minute: int = 10
    auto_bill: bool = False
    payments: PaymentMode = "succeed"
    premium: bool = True
    refresh_wallets_s: int = 300
    finalize_zero_invoices: bool = True
    webhook_retry_waits_s: tuple[float, ...] = (3.0, 18.0)
    webhook_timeout_s: float = 30.0
    events_batch_max: int = 100
    body_bytes_max: int = 8 * 1024**2
    version: str = "v1.51.0"
    seed: int = 1
    now: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if not 0 <= self.bill_minute <= 59:
            raise ValueError(f"bill_minute: {self.bill_minute} is not from 0 to 59")
        if self.period_s is not None and self.period_s < 1:
            raise ValueError(f"period_s: {self.period_s} is not at least 1")
        if not 0 <= self.period_delay_s < (self.period_s or 1):
            raise ValueError(f"period_delay_s: {self.period_delay_s} is not from 0 to less than period_s")
        if self.invoice_grace_period_days < 0:
            raise ValueError(f"invoice_grace_period_days: {self.invoice_grace_period_days} is negative")
        if self.refresh_wallets_s and self.refresh_wallets_s % 300:
            raise ValueError(f"refresh_wallets_s: {self.refresh_wallets_s} is not a multiple of 300, nor 0")
