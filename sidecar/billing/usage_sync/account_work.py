"""One account in one round: what is remembered of it, what it owes, what became of it. Without I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.delivery import Outcome
from sidecar.billing.usage_sync.frozen_events import Outgoing
from sidecar.billing.usage_sync.metered_usage import Need
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.planning import (
    Finding,
    Moment,
    Settled,
    Span,
    is_finished,
    is_flushing,
    new_book,
    settle,
    spans,
    strays,
)
from sidecar.billing.usage_sync.pushed_usage import Book
from sidecar.billing.usage_sync.sync_report import Counts, RowKind, SyncRow, Tally
from sidecar.billing.usage_sync.sync_store import Change, Remembered

BOOKS_DONE_MAX: Final = 64
"""Books of one account that are kept after the last look at them, for comparisons with invoices."""


@dataclass(frozen=True, slots=True)
class Stray:
    """Units that were pushed for a period, and that Lago bills in another one, ``home``."""

    segment_s: int
    units: int
    home: PeriodLink


@dataclass(frozen=True, slots=True)
class Claim:
    """A metric of a period that is looked at, and the stretches of it. ``strayed``: units of it that Lago bills in
    other periods, which was not known before."""

    link: PeriodLink
    metric: str
    book: Book
    spans: tuple[Span, ...]
    strayed: tuple[Stray, ...] = ()

    def needs(self, account: str) -> Iterator[Need]:
        for span in self.spans:
            yield Need(account, self.metric, span.segment.start_s, span.until_s)


@dataclass(slots=True)
class Work:
    """``change`` is what to write before ``fresh`` events are sent. ``has_failed``: the account is left for the next
    round."""

    account: SyncAccount
    remembered: Remembered
    claims: list[Claim] = field(default_factory=list)
    change: Change = field(default_factory=Change)
    fresh: Sequence[Outgoing] = ()
    has_failed: bool = False

    def target_of(self, outgoing: Outgoing) -> PeriodLink | None:
        """The period that an event is billed in, if it is still listed."""
        return next(
            (
                link
                for link, metric in self.account.claims()
                if link.ledger_start_ms == outgoing.target_start_ms and metric == outgoing.metric
            ),
            None,
        )

    def is_missed(self, outgoing: Outgoing) -> bool:
        """Whether an event that has not reached Lago yet would be billed no more."""
        target = self.target_of(outgoing)
        return target is not None and target.is_final

    def is_due(self, outgoing: Outgoing, moment: Moment, settings: SyncSettings) -> bool:
        """Whether to send it now. One that was set aside gets another chance before its period's invoice is made."""
        if self.is_missed(outgoing):
            return False
        target = self.target_of(outgoing)
        is_last_chance = target is not None and is_flushing(target, moment, settings)
        return outgoing.state == "frozen" or moment.flush or is_last_chance

    def claim(self, refused: Mapping[str, str], moment: Moment, settings: SyncSettings, tally: Tally) -> None:
        """Find out what has to be known of OpenMeter."""
        claimed: dict[tuple[int, str], str] = {}
        for link, metric in self.account.claims():
            key = link.start_s, metric
            book = self.remembered.books.get(key)
            if book is None and link.start_s <= self.remembered.past.until_s:
                continue
            other = claimed.get(key) or (book.subscription_id if book is not None else link.subscription_id)
            if other != link.subscription_id:
                tally.add(self._row(link.ledger_start_ms, metric, "error", 0, detail=_two_subscriptions(link, other)))
                tally.counts.accounts_failed += 1
                continue
            claimed[key] = link.subscription_id
            book = (book or new_book(link, metric)).clipped(link.end_s)
            if metric in refused or book.is_done or link.start_s > moment.now_s:
                continue
            book, strayed = self._without_strays(link, metric, book)
            self.claims.append(Claim(link, metric, book, spans(link, book, moment, settings), strayed))

    def plan(
        self,
        units: Mapping[Need, int],
        fields: Mapping[str, str],
        moment: Moment,
        settings: SyncSettings,
        tally: Tally,
    ) -> None:
        """Decide what to write: events to freeze, and the books with them."""
        events: list[Outgoing] = []
        retargeted: list[Outgoing] = []
        books: dict[tuple[int, str], Book] = {}
        carried: list[tuple[PeriodLink, str, int]] = []
        for claim in self.claims:
            counted = [units[need] for need in claim.needs(self.account.id)]
            current = self.account.current(claim.metric) if settings.late_usage == "carry" else None
            settled = settle(
                claim.link, claim.book, claim.spans, counted, moment, settings, fields[claim.metric], current
            )
            books[claim.link.start_s, claim.metric] = self._marked(claim.link, settled, moment, settings)
            events += settled.events
            for finding in settled.findings:
                self._note_finding(claim, finding, tally)
            tally.counts.late_units_known += settled.book.late
            if current is not None and settled.carried:
                carried.append((current, claim.metric, settled.carried))
            carried += [(stray.home, claim.metric, stray.units) for stray in claim.strayed]
            retargeted += self._retargeted(claim)
        for home, metric, more in carried:
            key = home.start_s, metric
            into = books.get(key) or self.remembered.books.get(key) or new_book(home, metric)
            books[key] = replace(into, carried_in=into.carried_in + more)
        changed = [book for key, book in books.items() if book != self.remembered.books.get(key)]
        self.change = self._forgetting(Change(books=changed, outgoing=[*events, *retargeted]))
        self.fresh = events

    def standing(self, counts: Counts) -> None:
        """Count what is left."""
        for outgoing in self.remembered.outgoing.values():
            counts.pending += outgoing.state == "frozen"
            counts.set_aside += outgoing.state != "frozen"

    def note(self, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
        """Count and report what became of this account's events."""
        pushed: dict[tuple[int, str, RowKind], list[int]] = {}
        counts = tally.counts
        for transaction_id, outgoing in self.remembered.outgoing.items():
            outcome = outcomes.get(transaction_id)
            if outcome is None:
                continue
            if outcome.kind == "sent":
                counts.events += 1
                counts.units += outgoing.units
                counts.deltas += outgoing.revision > 0
                counts.carried_events += outgoing.is_carried
                counts.carried_units += outgoing.units if outgoing.is_carried else 0
                kind: RowKind = "carried" if outgoing.is_carried else "pushed"
                pushed.setdefault((outgoing.period_start_ms, outgoing.metric, kind), []).append(outgoing.units)
                continue
            counts.duplicates += outcome.kind == "duplicate"
            counts.adopted += outcome.kind == "adopted"
            counts.rejected += outcome.kind == "rejected"
            counts.conflicts += outcome.kind in ("conflict", "adopted")
            counts.voided += outcome.kind == "void"
            if outcome.kind != "void":
                detail = f"{transaction_id}{': ' if outcome.reason else ''}{outcome.reason}"
                tally.add(
                    self._row(outgoing.period_start_ms, outgoing.metric, outcome.kind, outgoing.units, 1, detail=detail)
                )
        for (period_ms, metric, kind), units in pushed.items():
            tally.add(self._row(period_ms, metric, kind, sum(units), len(units)))

    def fail(self, reason: str, tally: Tally) -> None:
        """Leave the account for the next round."""
        self.has_failed = True
        tally.counts.accounts_failed += 1
        tally.add(SyncRow(self.account.id, 0, "", "error", 0, detail=reason))

    def _without_strays(self, link: PeriodLink, metric: str, book: Book) -> tuple[Book, tuple[Stray, ...]]:
        """The book, with what turned out to lie beyond the end of Lago's period booked as carried out."""
        changed, strayed = [], []
        for segment, at_s in strays(link, book):
            home = self._home(link, metric, at_s)
            if home is not None:
                strayed.append(Stray(segment.start_s, segment.pushed, home))
                changed.append(replace(segment, pushed=0, carried=segment.carried + segment.pushed))
            elif link.is_final:  # nobody bills it: it is late usage
                changed.append(replace(segment, pushed=0))
            else:  # what follows is not listed yet
                return book, ()
        return replace(book.with_segments(changed), lago_to_ms=link.lago_to_ms), tuple(strayed)

    def _home(self, link: PeriodLink, metric: str, at_s: Decimal) -> PeriodLink | None:
        """The other period in which Lago bills an event of this one's subscription at an instant."""
        for each, name in self.account.claims():
            is_same = each.external_subscription_id == link.external_subscription_id and name == metric
            if is_same and each is not link and each.lago_from_ms <= at_s * 1000 < each.lago_to_ms:
                return each
        return None

    def _retargeted(self, claim: Claim) -> Iterator[Outgoing]:
        """Events of strayed segments that are still on their way, told where they will be billed."""
        homes = {stray.segment_s: stray.home for stray in claim.strayed}
        for outgoing in self.remembered.outgoing.values():
            is_own = (outgoing.period_start_ms, outgoing.metric) == (claim.link.ledger_start_ms, claim.metric)
            if is_own and not outgoing.is_carried and outgoing.segment_s in homes:
                yield replace(outgoing, target_start_ms=homes[outgoing.segment_s].ledger_start_ms)

    def _marked(self, link: PeriodLink, settled: Settled, moment: Moment, settings: SyncSettings) -> Book:
        """The book, done if nothing can come any more."""
        awaited = {each.period_start_ms for each in self.remembered.outgoing.values()}
        awaited |= {each.target_start_ms for each in self.remembered.outgoing.values()}
        is_done = is_finished(link, moment, settings) and not settled.events and link.ledger_start_ms not in awaited
        return replace(settled.book, is_done=is_done)

    def _forgetting(self, change: Change) -> Change:
        """The same, and the oldest of too many books that are done go into the sums."""
        done = sorted(
            (book for book in self.remembered.books.values() if book.is_done),
            key=lambda book: (book.start_s, book.metric),
        )
        surplus = done[: max(0, len(done) - BOOKS_DONE_MAX)]
        if not surplus:
            return change
        past = self.remembered.past
        for book in surplus:
            past = past.with_book(book)
        return replace(change, forgotten=[(book.start_s, book.metric) for book in surplus], past=past)

    def _note_finding(self, claim: Claim, finding: Finding, tally: Tally) -> None:
        if finding.kind == "late":
            tally.counts.late_units += finding.units if finding.is_new else 0
            detail = "missed its invoice" if finding.is_new else "missed its invoice, as reported before"
        else:
            tally.counts.excess_units += finding.units
            detail = "pushed, and no longer in OpenMeter; Lago takes nothing back"
        tally.add(
            self._row(
                claim.link.ledger_start_ms,
                claim.metric,
                finding.kind,
                finding.units,
                detail=f"segment {finding.segment_s}: {detail}",
                is_new=finding.is_new,
            )
        )

    def _row(
        self,
        period_ms: int,
        metric: str,
        kind: RowKind,
        units: int,
        events: int = 0,
        *,
        detail: str = "",
        is_new: bool = True,
    ) -> SyncRow:
        return SyncRow(self.account.id, period_ms, metric, kind, units, events, detail, is_new)


def _two_subscriptions(link: PeriodLink, other: str) -> str:
    return (
        f"subscriptions {other} and {link.subscription_id} both charge this metric in the period;"
        f" it is pushed to {other} only"
    )


def unsent(works: Sequence[Work]) -> list[tuple[Work, Outgoing]]:
    """Every event that is remembered, account by account."""
    return [(work, each) for work in works if not work.has_failed for each in work.remembered.outgoing.values()]
