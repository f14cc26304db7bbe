"""Decides what one metric of one period owes Lago, without I/O.

First ``segments_to_compare`` says of which intervals of time the units must be known, then ``plan_usage`` compares
these units with what was frozen before, and answers the events that make up the difference.

Windows begin at multiples of ``window_s`` since the Unix epoch and are cut at the bounds of the ledger's periods, so
zones that are no whole hours from UTC, and upgrades at any second, come out exact. A window is looked at once it has
ended and settled; a period that is about to end, or has ended without an invoice, is looked at up to this second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Literal

from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.frozen_events import FrozenEvent, transaction_id
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.billing.usage_sync.pushed_usage import HOUR_S, PushedUsage, Segment

SEGMENTS_MAX: Final = 2_000
"""Segments of one metric in one round; the next round goes on where they end."""

LEDGER_AFTER_S: Final = 300
"""So long after a period's end the ledger's counts make up for what OpenMeter does not show. Lago bills at ten past."""


@dataclass(frozen=True, slots=True)
class RoundTime:
    """When a round looks, and at what. ``flush``: every open period up to this second. ``rescan``: what was compared
    before is compared again, ``rescan_s`` back."""

    now_s: int
    flush: bool = False
    rescan: bool = True


@dataclass(frozen=True, slots=True)
class SegmentToCompare:
    """A segment to be compared: the units from ``segment.start_s`` to just before ``until_s``, which comes before the
    segment's end as long as that is to come."""

    segment: Segment
    until_s: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Units that were not pushed, and why.

    ``late``: they missed the invoice; ``is_new`` tells those that were not reported before. ``excess``: more were
    pushed than are to be billed, and nothing can be taken back; whether that was reported is not remembered.
    """

    kind: Literal["late", "excess"]
    segment_s: int
    units: int
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class PlannedUsage:
    """``pushed_usage`` as it is with ``events`` frozen. ``carried``: units of those that another period bills."""

    pushed_usage: PushedUsage
    events: tuple[FrozenEvent, ...] = ()
    findings: tuple[Finding, ...] = ()
    carried: int = 0


def new_pushed_usage(link: PeriodLink, metric: str) -> PushedUsage:
    """The pushed usage of a period that was not looked at before: none."""
    return PushedUsage(
        link.start_s,
        metric,
        link.subscription_id,
        link.lago_to_ms,
        through_s=link.start_s,
        was_open=not link.is_final,
    )


def is_flushing(link: PeriodLink, round_time: RoundTime, settings: SyncSettings) -> bool:
    """Whether the period's usage is pushed up to this second."""
    return not link.is_final and (round_time.flush or link.end_s - settings.final_flush_s <= round_time.now_s)


def is_due(link: PeriodLink, round_time: RoundTime) -> bool:
    """Whether the period's invoice is about to be made, so that what OpenMeter does not show must wait no longer."""
    return not link.is_final and round_time.now_s >= link.end_s + LEDGER_AFTER_S


def is_finished(link: PeriodLink, round_time: RoundTime, settings: SyncSettings) -> bool:
    """Whether nothing that may still come for the period would be looked for."""
    return link.is_final and link.end_s + settings.rescan_s < round_time.now_s


def segments_to_compare(
    link: PeriodLink, pushed_usage: PushedUsage, round_time: RoundTime, settings: SyncSettings
) -> tuple[SegmentToCompare, ...]:
    """The segments to compare, in order of time, without gaps from the first on."""
    flushing = is_flushing(link, round_time, settings)
    settled_s = round_time.now_s - settings.settle_s
    limit_s = min(link.end_s, round_time.now_s if flushing else settled_s)
    if flushing or link.is_final:
        low_s = link.start_s
    elif round_time.rescan:
        low_s = max(
            link.start_s, min(pushed_usage.through_s, (round_time.now_s - settings.rescan_s) // HOUR_S * HOUR_S)
        )
    else:
        low_s = max(link.start_s, pushed_usage.through_s)
    stored = {segment.start_s: segment for segment in pushed_usage.segments}
    at_s = next((each.start_s for each in pushed_usage.segments if each.start_s <= low_s < each.end_s), low_s)
    # Days of minutes that were held back are more than one round has room for, and Lago bills in minutes.
    window_s = HOUR_S if is_due(link, round_time) else settings.window_s
    starts_s = sorted(stored)
    found: list[SegmentToCompare] = []
    while at_s < limit_s and len(found) < SEGMENTS_MAX:
        segment = stored.get(at_s)
        if segment is None:
            next_at = bisect_right(starts_s, at_s)
            next_s = starts_s[next_at] if next_at < len(starts_s) else link.end_s
            # Late usage of an hour whose windows were merged needs no more detail.
            step_s = HOUR_S if at_s < pushed_usage.hourly_s else window_s
            segment = Segment(at_s, min((at_s // step_s + 1) * step_s, next_s))
        until_s = min(segment.end_s, limit_s)
        if until_s < segment.end_s and not flushing:
            break
        found.append(SegmentToCompare(segment, until_s))
        at_s = segment.end_s
    return tuple(found)


def displaced_segments(link: PeriodLink, pushed_usage: PushedUsage) -> tuple[tuple[Segment, Decimal], ...]:
    """Segments whose events lie beyond the end of Lago's period, with their timestamps.

    They were pushed after Lago had cut the subscription, by an upgrade say, and before that was noticed: Lago bills
    them by the subscription that follows.
    """
    if pushed_usage.lago_to_ms <= link.lago_to_ms:
        return ()
    before = replace(link, lago_to_ms=pushed_usage.lago_to_ms)
    timed = ((segment, before.instant_within(segment.start_s)) for segment in pushed_usage.segments if segment.pushed)
    return tuple((segment, at_s) for segment, at_s in timed if at_s * 1000 >= link.lago_to_ms)


def plan_usage(
    link: PeriodLink,
    pushed_usage: PushedUsage,
    found: Sequence[SegmentToCompare],
    units: Sequence[int | None],
    round_time: RoundTime,
    settings: SyncSettings,
    field_name: str,
    current: PeriodLink | None = None,
) -> PlannedUsage:
    """Compare the ``units`` to bill of each segment with what was frozen. None: it is held back, and looked at again.

    ``field_name``: the property that Lago sums. ``current``: the period that usage is carried into which missed its
    invoice; None: it is only reported.
    """
    carries_into = current if link.is_final and pushed_usage.was_open else None
    changed: list[Segment] = []
    events: list[FrozenEvent] = []
    findings: list[Finding] = []
    carried, through_s = 0, pushed_usage.through_s
    for compared, counted in zip(found, units, strict=True):
        if counted is None:
            continue
        segment, event, finding = _plan_segment(link, pushed_usage.metric, compared, counted, field_name, carries_into)
        if segment != compared.segment:
            changed.append(segment)
        if event is not None:
            events.append(event)
            carried += event.units if event.is_carried else 0
        if finding is not None:
            findings.append(finding)
        is_complete = compared.until_s == segment.end_s <= round_time.now_s - settings.settle_s
        if is_complete and segment.start_s <= through_s:
            through_s = max(through_s, segment.end_s)
    changed_usage = replace(pushed_usage.with_segments(changed), through_s=through_s)
    if pushed_usage.lago_to_ms <= link.lago_to_ms:  # displaced segments must still be told apart
        changed_usage = changed_usage.compacted(link.end_s, round_time.now_s, settings.rescan_s)
    return PlannedUsage(changed_usage, tuple(events), tuple(findings), carried)


def _plan_segment(
    link: PeriodLink,
    metric: str,
    compared: SegmentToCompare,
    counted: int,
    field_name: str,
    carries_into: PeriodLink | None,
) -> tuple[Segment, FrozenEvent | None, Finding | None]:
    segment = compared.segment
    owed = counted - segment.frozen
    if owed < 0:
        return replace(segment, late=0), None, Finding("excess", segment.start_s, -owed, is_new=False)
    if owed == 0:
        return replace(segment, late=0) if segment.late else segment, None, None
    if link.is_final and carries_into is None:
        new = owed - segment.late
        return replace(segment, late=owed), None, Finding("late", segment.start_s, new if new > 0 else owed, new > 0)
    target = carries_into or link
    is_carried = target is not link
    billed = target.billed_metric(metric)
    event = FrozenEvent(
        transaction_id=transaction_id(metric, link, segment.start_s, segment.next_rev, carried=is_carried),
        external_subscription_id=target.external_subscription_id,
        metric=metric,
        field_name=field_name,
        timestamp=target.instant_within(segment.start_s),
        units=owed,
        period_start_ms=link.ledger_start_ms,
        target_start_ms=target.ledger_start_ms,
        segment_s=segment.start_s,
        code=billed.code if (billed.code, billed.properties) != (metric, ()) else "",
        properties=billed.properties,
    )
    return (
        replace(
            segment,
            pushed=segment.pushed + (0 if is_carried else owed),
            carried=segment.carried + (owed if is_carried else 0),
            late=0,
            next_rev=segment.next_rev + 1,
        ),
        event,
        None,
    )
