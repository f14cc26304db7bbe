"""The reconciler's state of an account between two readings: one hash in Valkey, beside the account's own.

Fields: ``link:<ledger start>:<subscription>`` to which Lago period a period of the ledger belongs, ``fee:<period>``
what the fees beside usage add to it, ``foreign:<period>`` what Lago had counted in it beyond the ledger,
``invoiced:<period>`` what a period came to whose invoice is final, ``last`` the last reading. ``<period>`` is the
start, and for a subscription of the ledger with a name ``<start>:<name>``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

import orjson

from sidecar.billing.usage_sync.period_links import PeriodKey, PeriodLink, decode_link, encode_link

ABSENT: Final = "absent"
"""Policy of a reading that found nothing to load."""


@dataclass(frozen=True, slots=True)
class InvoicedPeriod:
    """A period of the ledger whose invoice is final. ``units`` and ``costs`` are the ledger's, by metric; ``billed`` is
    what the invoice has for them, taxes included, where units are missing on it. ``invoice_id`` None: nothing was due.
    ``subscription``: the ledger's.
    """

    start_ms: int
    end_ms: int
    invoice_id: str | None
    units: Mapping[str, int]
    costs: Mapping[str, Decimal]
    fee: Decimal
    at_ms: int
    voided_at_ms: int | None = None
    billed: Decimal | None = None
    subscription: str = ""

    @property
    def key(self) -> PeriodKey:
        return self.start_ms, self.subscription


@dataclass(frozen=True, slots=True)
class LastReading:
    """The figures of the last load. Money in units of the currency. ``policy``: the policy's revision
    (``effective_prices.policy_revision``). ``is_open``: a period owes something still.
    """

    read_at_ms: int
    balance: Decimal
    policy: str
    fingerprint: str = ""
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class ReconcileState:
    """Keys of ``links``: start and Lago's id of the subscription. ``checks``: JSON of how the invoice compared with the
    ledger (``invoice_checks``).
    """

    links: Mapping[tuple[int, str], PeriodLink] = field(default_factory=dict)
    fees: Mapping[PeriodKey, Decimal] = field(default_factory=dict)
    invoiced: Mapping[PeriodKey, InvoicedPeriod] = field(default_factory=dict)
    last: LastReading | None = None
    checks: Mapping[PeriodKey, str] = field(default_factory=dict)
    foreign: Mapping[PeriodKey, Decimal] = field(default_factory=dict)

    @property
    def came_from_lago(self) -> bool:
        """Whether the ledger's account was ever loaded from Lago; else it is a file's."""
        return self.last is not None and self.last.policy != ABSENT

    def links_of(self, key: PeriodKey) -> tuple[PeriodLink, ...]:
        return tuple(link for _, link in sorted(self.links.items()) if link.key == key)

    @property
    def periods(self) -> frozenset[PeriodKey]:
        """All that it knows of."""
        return frozenset({link.key for link in self.links.values()} | set(self.invoiced))

    def fields(self) -> dict[str, str]:
        """As it is stored."""
        stored = {
            f"link:{start}:{subscription}": encode_link(link) for (start, subscription), link in self.links.items()
        }
        stored |= {field_name("fee", key): str(fee) for key, fee in self.fees.items()}
        stored |= {field_name("foreign", key): str(amount) for key, amount in self.foreign.items()}
        stored |= {field_name("invoiced", key): _dump(asdict(period)) for key, period in self.invoiced.items()}
        stored |= {field_name("check", key): check for key, check in self.checks.items()}
        if self.last is not None:
            stored["last"] = _dump(asdict(self.last))
        return stored

    def with_fingerprint(self, fingerprint: str) -> ReconcileState:
        return self if self.last is None else replace(self, last=replace(self.last, fingerprint=fingerprint))

    def oldest_ms(self, current: Collection[PeriodKey]) -> int:
        """The earliest instant for which invoices may matter: the start of the first period that is over and not
        invoiced, or else that of the youngest one of the ``current``."""
        waiting = [key[0] for key in self.periods if key not in current and not self._is_done(key)]
        return min([max((start for start, _ in current), default=0), *waiting])

    def _is_done(self, key: PeriodKey) -> bool:
        invoiced = self.invoiced.get(key)
        return invoiced is not None and invoiced.voided_at_ms is None


def field_name(kind: str, key: PeriodKey) -> str:
    """The field of a period."""
    start_ms, subscription = key
    return f"{kind}:{start_ms}:{subscription}" if subscription else f"{kind}:{start_ms}"


def _key(text: str) -> PeriodKey:
    start, _, subscription = text.partition(":")
    return int(start), subscription


class MalformedReconcileState(ValueError):
    """A field that no version has written. The message names it."""


def decode_reconcile_state(fields: Mapping[bytes, bytes]) -> ReconcileState:
    """Raises ``MalformedReconcileState``."""
    links: dict[tuple[int, str], PeriodLink] = {}
    fees: dict[PeriodKey, Decimal] = {}
    foreign: dict[PeriodKey, Decimal] = {}
    invoiced: dict[PeriodKey, InvoicedPeriod] = {}
    checks: dict[PeriodKey, str] = {}
    last = None
    for name, value in fields.items():
        kind, _, rest = name.decode("utf-8", "replace").partition(":")
        try:
            if kind == "link":
                start, _, subscription = rest.partition(":")
                links[int(start), subscription] = decode_link(value)
            elif kind == "fee":
                fees[_key(rest)] = Decimal(value.decode())
            elif kind == "foreign":
                foreign[_key(rest)] = Decimal(value.decode())
            elif kind == "invoiced":
                invoiced[_key(rest)] = _invoiced(orjson.loads(value))
            elif kind == "check":
                checks[_key(rest)] = value.decode()
            elif kind == "last":
                row = orjson.loads(value)
                last = decode_last(row)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise MalformedReconcileState(f"{name[:60]!r} cannot be read: {error}") from None
    return ReconcileState(links, fees, invoiced, last, checks, foreign)


def decode_last(row: Any) -> LastReading:
    """Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``ArithmeticError``."""
    return LastReading(
        read_at_ms=int(row["read_at_ms"]),
        balance=Decimal(row["balance"]),
        policy=str(row["policy"]),
        fingerprint=str(row["fingerprint"]),
        is_open=bool(row["is_open"]),
    )


def _invoiced(row: Any) -> InvoicedPeriod:
    return InvoicedPeriod(
        start_ms=int(row["start_ms"]),
        end_ms=int(row["end_ms"]),
        invoice_id=row["invoice_id"],
        units={str(metric): int(units) for metric, units in row["units"].items()},
        costs={str(metric): Decimal(cost) for metric, cost in row["costs"].items()},
        fee=Decimal(row["fee"]),
        at_ms=int(row["at_ms"]),
        voided_at_ms=row["voided_at_ms"],
        billed=Decimal(row["billed"]) if row.get("billed") is not None else None,
        subscription=str(row.get("subscription", "")),
    )


def _dump(row: object) -> str:
    return orjson.dumps(row, default=str).decode()
