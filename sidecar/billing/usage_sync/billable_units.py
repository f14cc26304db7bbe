"""Which units of a period to bill, by what OpenMeter shows and what the ledger has charged. Without I/O.

Nothing is billed that the ledger has not charged: OpenMeter may count an event twice, or count a stranger's. What
OpenMeter does not show is billed from the ledger where the ledger is the source, and shortly before Lago makes the
invoice. Hours are compared one by one where the ledger has them; a period as a whole always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.billing.usage_sync.metered_usage import NotShown, Shown
from sidecar.billing.usage_sync.planning import SegmentToCompare
from sidecar.billing.usage_sync.pushed_usage import HOUR_S, PushedUsage, Segment
from sidecar.ledger.account_counts import AccountCounts


@dataclass(frozen=True, slots=True)
class BillableUnits:
    """``units``: of each segment, None for one that is held back, for the reason in ``held``. ``surplus``: units that
    OpenMeter shows and the ledger has not charged. ``from_ledger``: billed although OpenMeter does not show them."""

    units: tuple[int | None, ...]
    surplus: int = 0
    from_ledger: int = 0
    held: str = ""


@dataclass(frozen=True, slots=True)
class ChargedUnits:
    """What the ledger has charged for one metric. ``period``: N of the period, None if the ledger has forgotten it.
    ``taken``: units of it that were counted elsewhere before the account was loaded, which no hour has."""

    metric: str
    counts: AccountCounts
    period: int | None
    taken: int = 0

    def between(self, start_s: int, end_s: int) -> int | None:
        """Units between two instants; None if the ledger does not know: they are no whole hours, or too old."""
        if start_s % HOUR_S or end_s % HOUR_S:
            return None
        return self.counts.of_hours(start_s // HOUR_S, end_s // HOUR_S, self.metric)

    def between_whole(self, start_s: int, end_s: int) -> int:
        """Units of the whole hours that lie between two instants, as far as they are known."""
        return self.counts.known_of_hours(-(-start_s // HOUR_S), end_s // HOUR_S, self.metric)

    def most_of(self, segment: Segment, known: int | None) -> int | None:
        """The most units that a segment may have; None: what is left of the period. ``known``: those ``between`` its
        bounds.

        Where units were taken over, an hour without a count may be one of those in which they were used. What was
        compared before and merged since has all that is its own.
        """
        if not self.taken:
            return known
        if segment.end_s - segment.start_s > HOUR_S:
            return max(known or 0, segment.frozen)
        return known or None


def billable_units(
    found: Sequence[SegmentToCompare],
    counted: Sequence[Shown],
    pushed_usage: PushedUsage,
    charged: ChargedUnits,
    *,
    from_ledger: bool,
    end_s: int,
    is_over: bool = False,
) -> BillableUnits:
    """``counted``: OpenMeter's units of each segment, or why there are none. ``from_ledger``: bill what the ledger has
    charged, whatever OpenMeter shows. ``end_s``: of the period; ``is_over``: that has passed."""
    own = [charged.between(each.segment.start_s, each.segment.end_s) for each in found]
    exact = [charged.most_of(each.segment, known) for each, known in zip(found, own, strict=True)]
    wanted: list[int] = []
    held: list[str] = []
    surplus = 0
    for compared, shown, known, charged_here in zip(found, counted, exact, own, strict=True):
        reason = _fault(shown, known)
        held.append(reason)
        frozen = compared.segment.frozen
        if from_ledger and charged_here is not None and (known is not None or not charged.taken):
            wanted.append(max(charged_here, frozen if charged.taken else 0))
        elif reason or isinstance(shown, NotShown):
            wanted.append(frozen)
        else:
            kept = frozen if known is None else min(frozen, known)
            wanted.append(max(shown if known is None else min(shown, known), kept, 0))
        if known is not None and not isinstance(shown, NotShown):
            surplus += max(0, shown - known)
    if charged.period is not None:
        left = charged.period - (sum(segment.frozen for segment in pushed_usage.segments) - _frozen(found))
        surplus += _surplus_of_parts(counted, exact, left)
        wanted, left = _within(wanted, [each.segment.frozen for each in found], exact, left)
        if charged.taken:
            # Wherever they were counted, Lago has them, or OpenMeter shows them.
            left = min(left, charged.period - charged.taken - _accounted(found, own, wanted))
        if from_ledger and found:
            last_s = found[-1].segment.end_s
            rest = left - charged.between_whole(last_s, end_s)  # these hours have their turn later
            _add_rest(wanted, found, exact, rest, is_whole=is_over and last_s >= end_s)
    more = 0
    for compared, shown, units in zip(found, counted, wanted, strict=True):
        more += max(0, units - max(compared.segment.frozen, shown if isinstance(shown, int) else 0))
    stops = [
        not from_ledger and (bool(reason) or isinstance(shown, NotShown))
        for reason, shown in zip(held, counted, strict=True)
    ]
    return BillableUnits(
        tuple(None if stop else units for stop, units in zip(stops, wanted, strict=True)),
        surplus,
        more if from_ledger else 0,
        next((reason for reason in held if reason), ""),
    )


def _fault(shown: Shown, known: int | None) -> str:
    """Why what OpenMeter shows is not to be believed; "" if it is. A correction of the ledger's own is in its count of
    the hour too."""
    if isinstance(shown, NotShown):
        return shown.reason if shown.is_fault else ""
    if shown < 0 and (known is None or shown < known):
        return f"OpenMeter shows {shown} units, which the ledger has not corrected"
    return ""


def _frozen(found: Sequence[SegmentToCompare]) -> int:
    return sum(each.segment.frozen for each in found)


def _accounted(found: Sequence[SegmentToCompare], own: Sequence[int | None], wanted: Sequence[int]) -> int:
    """Units that the ledger has charged itself: of the hours, and at most those of parts of hours."""
    return sum(
        max(compared.segment.frozen, units) if known is None else known
        for compared, known, units in zip(found, own, wanted, strict=True)
    )


def _surplus_of_parts(counted: Sequence[Shown], exact: Sequence[int | None], most: int) -> int:
    """What OpenMeter shows of parts of hours beyond what the whole hours leave of the period."""
    parts = [shown for shown, known in zip(counted, exact, strict=True) if known is None]
    shown = sum(each for each in parts if not isinstance(each, NotShown))
    return max(0, shown - max(0, most - sum(known for known in exact if known is not None)))


def _within(
    wanted: Sequence[int], frozen: Sequence[int], exact: Sequence[int | None], most: int
) -> tuple[list[int], int]:
    """The units that are wanted, cut so that all together are no more than ``most``, and what is left of it. What was
    frozen before goes before what is new, and whole hours go before parts of them. Lago takes nothing back, so what was
    frozen leaves no room for other units even where it is too much."""
    left = max(0, most)
    kept = []
    for units, before in zip(wanted, frozen, strict=True):
        kept.append(min(units, before, left))
        left -= kept[-1]
    left = max(0, most - sum(frozen))
    for at in sorted(range(len(wanted)), key=lambda at: exact[at] is None):
        more = min(wanted[at] - kept[at], left)
        kept[at] += more
        left -= more
    return kept, left


def _add_rest(
    wanted: list[int],
    found: Sequence[SegmentToCompare],
    exact: Sequence[int | None],
    rest: int,
    *,
    is_whole: bool,
) -> None:
    """Units of the period that belong to no whole hour: to the last segment that has none of its own, or to the last
    one of a period that is over."""
    inexact = [at for at, known in enumerate(exact) if known is None]
    if rest > 0 and (inexact or is_whole):
        last = inexact[-1] if inexact else len(found) - 1
        wanted[last] = max(wanted[last], found[last].segment.frozen) + rest
