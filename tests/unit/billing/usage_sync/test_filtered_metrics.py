"""Metrics that are one billable metric in Lago: what their events carry, and which fees bill them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from sidecar.billing.lago.models import Fee, FilterValues, GroupValues, Invoice
from sidecar.billing.metric_mapping import BilledMetric
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.comparison import ComparisonRow, LedgerUsage, SyncedUnits, compare
from sidecar.billing.usage_sync.delivery import EventDelivery
from sidecar.billing.usage_sync.fee_groups import fee_groups
from sidecar.billing.usage_sync.frozen_events import decode_frozen_event, encode_frozen_event
from sidecar.billing.usage_sync.period_links import decode_link, encode_link
from tests.unit.billing.usage_sync.kit import HOUR, T0, Bank, LagoFake, link, metric_of, unavailable

SEPA_FILTER: FilterValues = (("scheme", ("sepa",)),)
SWIFT_FILTER: FilterValues = (("scheme", ("swift",)),)
SEPA = BilledMetric("payments_sepa", "payments", (("method", "POST"), ("scheme", "sepa")), SEPA_FILTER)
SWIFT = BilledMetric("payments_swift", "payments", (("scheme", "swift"),), SWIFT_FILTER)
PLAIN = BilledMetric("payments", "payments")
METRICS = ("payments", "payments_sepa", "payments_swift")
LINK = replace(link(T0, T0 + 30 * 24 * HOUR, metrics=METRICS), billed=(SEPA, SWIFT))
NOW = T0 + 2 * HOUR


@pytest.fixture
def bank() -> Bank:
    bank = Bank(SyncSettings(settle_s=0))
    bank.lago.metrics = {"payments": metric_of("payments")}
    for metric, units in zip(METRICS, (3, 5, 7), strict=True):
        bank.meter.use("tpp-1", T0 + 5, units, metric)
    return bank


# What is pushed


async def test_each_metric_is_pushed_under_its_code_with_its_properties_and_an_id_of_its_own(bank: Bank) -> None:
    report = await bank.round(NOW, LINK)
    assert report.is_complete
    assert {each: (event.code, event.properties) for each, event in bank.lago.events.items()} == {
        f"om:payments:s1:{T0}:0": ("payments", {"calls": "3"}),
        f"om:payments_sepa:s1:{T0}:0": ("payments", {"calls": "5", "scheme": "sepa", "method": "POST"}),
        f"om:payments_swift:s1:{T0}:0": ("payments", {"calls": "7", "scheme": "swift"}),
    }


async def test_frozen_events_keep_what_they_were_frozen_with(bank: Bank) -> None:
    bank.lago.error = unavailable()
    await bank.round(NOW, LINK)
    bank.lago.error = None
    moved = BilledMetric("payments_sepa", "payments", (("scheme", "swift"),), SWIFT_FILTER)
    bank.meter.use("tpp-1", T0 + 6, 2, "payments_sepa")
    await bank.round(NOW, replace(LINK, billed=(moved, SWIFT)))
    sent = {each: event.properties for each, event in bank.lago.events.items() if "sepa" in each}
    assert sent == {
        f"om:payments_sepa:s1:{T0}:0": {"calls": "5", "scheme": "sepa", "method": "POST"},
        f"om:payments_sepa:s1:{T0}:1": {"calls": "2", "scheme": "swift"},
    }


async def test_late_usage_is_carried_with_the_properties_of_the_period_that_bills_it(bank: Bank) -> None:
    bank.settings = SyncSettings(settle_s=0, late_usage="carry")
    now_s = T0 + HOUR
    old = replace(link(T0, now_s, metrics=METRICS), billed=(SEPA, SWIFT))
    await bank.round(now_s, old)
    bank.meter.use("tpp-1", T0 + 9, 2, "payments_sepa")
    other = replace(SEPA, properties=(("scheme", "card"),), filter=None)
    current = replace(link(now_s, now_s + HOUR, metrics=METRICS), billed=(other, SWIFT))
    await bank.round(now_s + 60, replace(old, is_final=True, is_current=False), current)
    (carried,) = [event for each, event in bank.lago.events.items() if each.endswith("carried")]
    assert carried.properties == {"calls": "2", "scheme": "card"}


async def test_a_code_that_lago_lacks_refuses_the_metric_by_its_entry(bank: Bank) -> None:
    wrong = replace(SEPA, code="paiments")
    report = await bank.round(NOW, replace(LINK, billed=(wrong, SWIFT)))
    assert list(report.refused) == ["payments_sepa"]
    assert report.refused["payments_sepa"].startswith(
        "metric 'payments_sepa', by its entry in lago.billable_metrics: Lago has no billable metric 'paiments'"
    )
    assert {event.properties["calls"] for event in bank.lago.events.values()} == {"3", "7"}


async def test_the_summed_property_cannot_be_one_of_the_entry(bank: Bank) -> None:
    bank.lago.metrics = {"payments": metric_of("payments", field_name="scheme")}
    report = await bank.round(NOW, LINK)
    assert set(report.refused) == {"payments_sepa", "payments_swift"}
    assert "sums 'scheme', which the entry gives as a property" in report.refused["payments_swift"]


async def frozen(bank: Bank) -> Any:
    bank.lago.error = unavailable()
    await bank.round(NOW, LINK)
    bank.lago.error = None
    state = await bank.store.read("tpp-1")
    return state.frozen_events[f"om:payments_sepa:s1:{T0}:0"]


async def test_a_frozen_event_is_read_as_it_was_written_also_one_of_before_there_were_properties(bank: Bank) -> None:
    event = await frozen(bank)
    assert decode_frozen_event(event.transaction_id, encode_frozen_event(event)) == event
    plain = replace(event, code="", properties=())
    row = orjson.loads(encode_frozen_event(plain))
    assert "code" not in row
    assert decode_frozen_event(event.transaction_id, orjson.dumps(row)) == plain


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "duplicate"),
        ({"calls": "9"}, "adopted"),
        ({"scheme": "swift"}, "conflict"),
        ({"scheme": None}, "conflict"),
        ({"more": "x"}, "conflict"),
    ],
)
async def test_a_duplicate_is_compared_with_its_properties(bank: Bank, change: dict[str, Any], kind: str) -> None:
    event = await frozen(bank)
    lago = LagoFake()
    properties = {name: value for name, value in ({**event.event().properties, **change}).items() if value is not None}
    lago.events = {event.transaction_id: replace(event.event(), properties=properties)}
    (outcome,) = (await EventDelivery(lago, 100).deliver([event])).outcomes.values()
    assert outcome.kind == kind
    if kind == "conflict":
        assert "frozen was 'sub-1', 'payments'" in outcome.reason
        assert "scheme=sepa" in outcome.reason


# Links


def test_a_link_keeps_how_its_metrics_are_billed() -> None:
    grouped = replace(SWIFT, group=(("region", None), ("scheme", "swift")))
    each = replace(LINK, billed=(SEPA, grouped))
    assert decode_link(encode_link(each)) == each
    assert each.billed_metric("payments_swift") == grouped
    assert each.billed_metric("payments") == PLAIN


def test_a_link_of_an_earlier_version_bills_metrics_by_their_names() -> None:
    row = orjson.loads(encode_link(LINK))
    del row["billed"]
    assert decode_link(orjson.dumps(row)).billed_metric("payments_sepa") == BilledMetric(
        "payments_sepa", "payments_sepa"
    )


@pytest.mark.parametrize("wrong", ["x", [1], [{"metric": "a"}], [{}] * 1_001])
def test_a_link_whose_metrics_are_billed_by_nothing_is_refused(wrong: object) -> None:
    row = orjson.loads(encode_link(LINK)) | {"billed": wrong}
    with pytest.raises(ValueError, match="billed of a link"):
        decode_link(orjson.dumps(row))


# Invoices


def fee(units: int, cents: int, filter_: FilterValues | None = None, group: GroupValues = (), **more: Any) -> Fee:
    return Fee("f", "charge", "payments", "s1", Decimal(units), cents, 0, filter=filter_, group=group, **more)


def invoice(*fees: Fee) -> Invoice:
    return Invoice(
        lago_id="i1", number="1", type="subscription", status="finalized", payment_status="succeeded", currency="EUR",
        fees_cents=0, taxes_cents=0, prepaid_cents=0, total_cents=0, due_cents=0, issuing_date="", created_at_ms=0,
        fees=fees,
    )  # fmt: skip


USED = [
    LedgerUsage("payments", 3, Decimal("0.045")),
    LedgerUsage("payments_sepa", 5, Decimal("0.125")),
    LedgerUsage("payments_swift", 7, Decimal("7.005")),
]


def rows(*fees: Fee, billed: tuple[BilledMetric, ...] = (SEPA, SWIFT)) -> dict[str, ComparisonRow]:
    synced = {each.metric: SyncedUnits(each.units, each.units) for each in USED}
    found = compare("tpp-1", [replace(LINK, billed=billed)], USED, synced, invoice(*fees))
    return {row.metric: row for row in found}


def test_each_metric_is_compared_with_the_fee_of_its_filter() -> None:
    found = rows(fee(7, 701, SWIFT_FILTER), fee(5, 13, SEPA_FILTER), fee(3, 5))
    assert list(found) == list(METRICS)
    assert all(row.is_equal for row in found.values()), found
    swapped = rows(fee(5, 701, SWIFT_FILTER), fee(7, 13, SEPA_FILTER), fee(3, 5))
    assert {metric: int(row.difference) for metric, row in swapped.items()} == {
        "payments": 0, "payments_sepa": -2, "payments_swift": 2,
    }  # fmt: skip


def test_a_fee_that_is_missing_is_a_difference_of_its_metric_alone() -> None:
    found = rows(fee(5, 13, SEPA_FILTER), fee(3, 5))
    assert {metric for metric, row in found.items() if not row.is_equal} == {"payments_swift"}


def test_groups_tell_metrics_of_one_filter_apart() -> None:
    groups = [(("scheme", name),) for name in ("sepa", "swift")]
    billed = replace(SEPA, filter=None, group=groups[0]), replace(SWIFT, filter=None, group=groups[1])
    found = rows(fee(7, 701, None, groups[1]), fee(5, 13, None, groups[0]), fee(3, 5), billed=billed)
    assert len(found) == 3
    assert all(row.is_equal for row in found.values())


def test_metrics_of_one_fee_have_one_row_and_are_rounded_once() -> None:
    both = replace(SEPA, filter=SWIFT_FILTER), SWIFT
    found = rows(fee(12, 713, SWIFT_FILTER), fee(3, 5), billed=both)
    assert list(found) == ["payments", "payments_sepa + payments_swift"]
    joint = found["payments_sepa + payments_swift"]
    assert (joint.ledger, joint.pushed, joint.openmeter, joint.ledger_cents) == (12, 12, 12, 713)
    assert joint.is_equal


def test_a_fee_that_fits_no_metric_makes_one_row_of_the_code() -> None:
    """The plan's filters have changed since, or the event is a stranger's: only the sums can be compared."""
    found = rows(fee(7, 701, SWIFT_FILTER), fee(8, 18, (("scheme", ("card", "sepa")),)))
    (row,) = found.values()
    assert row.metric == "payments + payments_sepa + payments_swift"
    assert (row.ledger, int(row.invoiced), int(row.difference)) == (15, 15, 0)
    assert row.ledger_cents == 5 + 13 + 701, "each fee is rounded"


def test_a_fee_of_a_metric_that_nobody_charges_has_a_row_of_its_own() -> None:
    groups = list(fee_groups([PLAIN], [replace(fee(4, 4), metric_code="other"), fee(3, 3)]))
    assert [(group.name, [int(each.units) for each in group.fees]) for group in groups] == [
        ("payments", [3]), ("other", [4]),
    ]  # fmt: skip
