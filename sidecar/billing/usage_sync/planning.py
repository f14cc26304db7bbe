"""Decides what one metric of one period owes Lago, without I/O.

First ``spans`` says of which stretches of time the units must be known, then ``settle`` compares these units with what
was frozen before, and answers the events that make up the difference.

Windows begin at multiples of ``window_s`` since the Unix epoch and are cut at the bounds of the ledger's periods, so
zones that are no whole hours from UTC, and upgrades at any second, come out exact. A window is looked at once it has
ended and settled; a period that is about to end, or has ended without an invoice, is looked at up to this second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Literal

from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.frozen_events import Outgoing, transaction_id
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.billing.usage_sync.pushed_usage import HOUR_S, Book, Segment

SPANS_MAX: Final = 2_000
"""Stretches of one metric in one round; the next round goes on where they end."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a round looks, and at what. ``flush``: every open period up to this second. ``rescan``: what was compared
    before is compared again, ``rescan_s`` back."""

    now_s: int
    flush: bool = False
    rescan: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """A segment to be compared: the units from ``segment.start_s`` to just before ``until_s``, which comes before the
    segment's end as long as that is to come."""

    segment: Segment
    until_s: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Units that were not pushed, and why.

    ``late``: they missed the invoice; ``is_new`` tells those that were not reported before. ``excess``: OpenMeter has
    fewer than were pushed, and nothing can be taken back; whether that was reported is not remembered.
    """

    kind: Literal["late", "excess"]
    segment_s: int
    units: int
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Settled:
    """``book`` as it is with ``events`` frozen. ``carried``: units of those that another period bills."""

    book: Book
    events: tuple[Outgoing, ...] = ()
    findings: tuple[Finding, ...] = ()
    carried: int = 0


def new_book(link: PeriodLink, metric: str) -> Book:
    """The book of a period that was not looked at before."""
    return Book(
        link.start_s,
        metric,
        link.subscription_id,
        link.lago_to_ms,
        through_s=link.start_s,
        was_open=not link.is_final,
    )


def is_flushing(link: PeriodLink, moment: Moment, settings: SyncSettings) -> bool:
    """Whether the period's usage is pushed up to this second."""
    return not link.is_final and (moment.flush or link.end_s - settings.final_flush_s <= moment.now_s)


def is_finished(link: PeriodLink, moment: Moment, settings: SyncSettings) -> bool:
    """Whether nothing that may still come for the period would be looked for."""
    return link.is_final and link.end_s + settings.rescan_s < moment.now_s


def spans(link: PeriodLink, book: Book, moment: Moment, settings: SyncSettings) -> tuple[Span, ...]:
    """What to compare, in order of time, without gaps from the first on."""
    flushing = is_flushing(link, moment, settings)
    settled_s = moment.now_s - settings.settle_s
    limit_s = min(link.end_s, moment.now_s if flushing else settled_s)
    if flushing or link.is_final:
        low_s = link.start_s
    elif moment.rescan:
        low_s = max(link.start_s, min(book.through_s, (moment.now_s - settings.rescan_s) // HOUR_S * HOUR_S))
    else:
        low_s = max(link.start_s, book.through_s)
    stored = {segment.start_s: segment for segment in book.segments}
    at_s = next((each.start_s for each in book.segments if each.start_s <= low_s < each.end_s), low_s)
    found: list[Span] = []
    while at_s < limit_s and len(found) < SPANS_MAX:
        segment = stored.get(at_s) or Segment(at_s, _end_of_window(at_s, link, book, settings.window_s))
        until_s = min(segment.end_s, limit_s)
        if until_s < segment.end_s and not flushing:
            break
        found.append(Span(segment, until_s))
        at_s = segment.end_s
    return tuple(found)


def _end_of_window(at_s: int, link: PeriodLink, book: Book, window_s: int) -> int:
    """Where a new segment ends. What comes late for an hour whose windows were merged needs no more detail."""
    step_s = HOUR_S if at_s < book.hourly_s else window_s
    next_s = next((each.start_s for each in book.segments if each.start_s > at_s), link.end_s)
    return min((at_s // step_s + 1) * step_s, next_s)


def strays(link: PeriodLink, book: Book) -> tuple[tuple[Segment, Decimal], ...]:
    """Segments whose events lie beyond the end of Lago's period, with their timestamps.

    They were pushed after Lago had cut the subscription, by an upgrade say, and before that was noticed: Lago bills
    them by the subscription that follows.
    """
    if book.lago_to_ms <= link.lago_to_ms:
        return ()
    before = replace(link, lago_to_ms=book.lago_to_ms)
    timed = ((segment, before.instant_within(segment.start_s)) for segment in book.segments if segment.pushed)
    return tuple((segment, at_s) for segment, at_s in timed if at_s * 1000 >= link.lago_to_ms)


def settle(
    link: PeriodLink,
    book: Book,
    found: Sequence[Span],
    units: Sequence[int],
    moment: Moment,
    settings: SyncSettings,
    field_name: str,
    current: PeriodLink | None = None,
) -> Settled:
    """Compare OpenMeter's ``units`` of each span with what was frozen.

    ``field_name``: the property that Lago sums. ``current``: the period that usage is carried into which missed its
    invoice; None: it is only reported.
    """
    carries_into = current if link.is_final and book.was_open else None
    changed: list[Segment] = []
    events: list[Outgoing] = []
    findings: list[Finding] = []
    carried, through_s = 0, book.through_s
    for span, counted in zip(found, units, strict=True):
        segment, event, finding = _settle_span(link, book.metric, span, counted, field_name, carries_into)
        if segment != span.segment:
            changed.append(segment)
        if event is not None:
            events.append(event)
            carried += event.units if event.is_carried else 0
        if finding is not None:
            findings.append(finding)
        is_complete = span.until_s == segment.end_s <= moment.now_s - settings.settle_s
        if is_complete and segment.start_s <= through_s:
            through_s = max(through_s, segment.end_s)
    settled = replace(book.with_segments(changed), through_s=through_s)
    if book.lago_to_ms <= link.lago_to_ms:  # what may have strayed must be told apart still
        settled = settled.compacted(link.end_s, moment.now_s, settings.rescan_s)
    return Settled(settled, tuple(events), tuple(findings), carried)


def _settle_span(
    link: PeriodLink, metric: str, span: Span, counted: int, field_name: str, carries_into: PeriodLink | None
) -> tuple[Segment, Outgoing | None, Finding | None]:
    segment = span.segment
    owed = counted - segment.frozen
    if owed < 0:
        return replace(segment, late=0), None, Finding("excess", segment.start_s, -owed, is_new=False)
    if owed == 0:
        return replace(segment, late=0), None, None
    if link.is_final and carries_into is None:
        new = owed - segment.late
        return replace(segment, late=owed), None, Finding("late", segment.start_s, new if new > 0 else owed, new > 0)
    target = carries_into or link
    is_carried = target is not link
    event = Outgoing(
        transaction_id=transaction_id(metric, link, segment.start_s, segment.next_rev, carried=is_carried),
        external_subscription_id=target.external_subscription_id,
        metric=metric,
        field_name=field_name,
        timestamp=target.instant_within(segment.start_s),
        units=owed,
        period_start_ms=link.ledger_start_ms,
        target_start_ms=target.ledger_start_ms,
        segment_s=segment.start_s,
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
