"""Links a period of the ledger to the billing period of Lago that bills it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Final

import orjson

from sidecar.billing.metric_mapping import BilledMetric

LINK_BYTES_MAX: Final = 1_048_576
METRICS_MAX: Final = 1_000

PeriodKey = tuple[int, str]
"""Start in ms of a period of the ledger, and the name of the ledger's subscription that it is of."""


@dataclass(frozen=True, slots=True)
class PeriodLink:
    """A period of the ledger, and the subscription and billing period of Lago that bill it.

    All bounds are Unix milliseconds, ends exclusive; ``ledger_end_ms`` of the current period is its planned end. The
    timestamps of events must lie from ``lago_from_ms`` to just before ``lago_to_ms``. ``is_final``: the invoice is
    finalised, nothing more can be billed on it. ``billed``: how Lago bills those ``metrics`` that are no plain ones.
    ``ledger_subscription``: the name of the ledger's subscription.

    Raises:
        ValueError: a bound of the ledger's is no whole second, or an end does not follow its start.
    """

    ledger_start_ms: int
    ledger_end_ms: int
    subscription_id: str
    external_subscription_id: str
    lago_from_ms: int
    lago_to_ms: int
    metrics: tuple[str, ...]
    is_final: bool
    is_current: bool
    ledger_subscription: str = ""
    billed: tuple[BilledMetric, ...] = ()

    def __post_init__(self) -> None:
        if self.ledger_start_ms % 1000 or self.ledger_end_ms % 1000 or self.ledger_start_ms < 0:
            raise ValueError(
                f"a ledger period from {self.ledger_start_ms} to {self.ledger_end_ms} has no whole seconds"
            )
        if self.ledger_end_ms <= self.ledger_start_ms:
            raise ValueError(f"the ledger period from {self.ledger_start_ms} ends at {self.ledger_end_ms}")
        if self.lago_to_ms <= self.lago_from_ms:
            raise ValueError(f"Lago's period from {self.lago_from_ms} ends at {self.lago_to_ms}")

    @property
    def key(self) -> PeriodKey:
        return self.ledger_start_ms, self.ledger_subscription

    @property
    def start_s(self) -> int:
        return self.ledger_start_ms // 1000

    @property
    def end_s(self) -> int:
        return self.ledger_end_ms // 1000

    def billed_metric(self, metric: str) -> BilledMetric:
        """How Lago bills a metric in this period."""
        return next((each for each in self.billed if each.metric == metric), BilledMetric(metric, metric))

    def instant_within(self, wanted_s: int) -> Decimal:
        """The timestamp, in Unix seconds, that Lago counts in this period: ``wanted_s``, or the nearest whole second
        inside Lago's bounds. The same arguments always give the same instant."""
        first_s, last_s = -(-self.lago_from_ms // 1000), (self.lago_to_ms - 1) // 1000
        if first_s > last_s:  # shorter than a second, between two whole ones
            return Decimal(self.lago_from_ms) / 1000
        return Decimal(min(max(wanted_s, first_s), last_s))


@dataclass(frozen=True, slots=True)
class SyncAccount:
    """An account, by the id that is Lago's customer and OpenMeter's subject, and its periods. ``invoiced``: what the
    ledger had charged in those with an invoice, by period and metric, since it forgets them then."""

    id: str
    links: tuple[PeriodLink, ...]
    invoiced: Mapping[PeriodKey, Mapping[str, int]] = field(default_factory=dict)

    def metric_periods(self) -> Iterator[tuple[PeriodLink, str]]:
        """Each period with each of its metrics, oldest first."""
        for link in sorted(self.links, key=lambda each: (each.ledger_start_ms, each.subscription_id)):
            for metric in link.metrics:
                yield link, metric

    def charged(self, link: PeriodLink, metric: str) -> int | None:
        """What the ledger had charged in a period that it may have forgotten; None if nobody knows. A period that has
        no invoice is not forgotten."""
        invoiced = self.invoiced.get(link.key)
        if invoiced is not None:
            return invoiced.get(metric, 0)
        return None if link.is_final else 0

    def current(self, metric: str) -> PeriodLink | None:
        """The period that is open for a metric now."""
        open_now = (link for link in self.links if link.is_current and not link.is_final and metric in link.metrics)
        return next(open_now, None)


def encode_link(link: PeriodLink) -> str:
    """A link as JSON."""
    return orjson.dumps(asdict(link)).decode()


def decode_link(data: bytes | str) -> PeriodLink:
    """A link as ``encode_link`` has written it; members that a later version adds are passed over.

    Raises:
        ValueError: it is no link; the message says what is wrong.
    """
    if len(data) > LINK_BYTES_MAX:
        raise ValueError(f"a link of {len(data)} bytes, more than {LINK_BYTES_MAX}")
    row = orjson.loads(data)
    if not isinstance(row, dict):
        raise ValueError("a link is not a JSON object")
    metrics = row.get("metrics")
    if not isinstance(metrics, list) or len(metrics) > METRICS_MAX or not all(type(each) is str for each in metrics):
        raise ValueError("metrics of a link is not a list of names")
    return PeriodLink(
        ledger_start_ms=_member(row, "ledger_start_ms", int),
        ledger_end_ms=_member(row, "ledger_end_ms", int),
        subscription_id=_member(row, "subscription_id", str),
        external_subscription_id=_member(row, "external_subscription_id", str),
        lago_from_ms=_member(row, "lago_from_ms", int),
        lago_to_ms=_member(row, "lago_to_ms", int),
        metrics=tuple(metrics),
        is_final=_member(row, "is_final", bool),
        is_current=_member(row, "is_current", bool),
        billed=_billed(row.get("billed", [])),
        ledger_subscription=_member({"ledger_subscription": "", **row}, "ledger_subscription", str),
    )


def _billed(rows: object) -> tuple[BilledMetric, ...]:
    """A link of an earlier version has none."""
    if not isinstance(rows, list) or len(rows) > METRICS_MAX:
        raise ValueError("billed of a link is not a list")
    try:
        return tuple(
            BilledMetric(
                metric=str(row["metric"]),
                code=str(row["code"]),
                properties=tuple((str(name), str(value)) for name, value in row["properties"]),
                filter=None if row["filter"] is None else tuple((str(k), tuple(map(str, v))) for k, v in row["filter"]),
                group=tuple((str(name), None if value is None else str(value)) for name, value in row["group"]),
            )
            for row in rows
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"billed of a link: {error!r}") from None


def _member(row: dict[str, Any], name: str, kind: type) -> Any:
    value = row.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} of a link is missing or not of the type {kind.__name__}")
    return value
