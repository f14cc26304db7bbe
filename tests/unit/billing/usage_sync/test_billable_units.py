"""What is billed is never more than the ledger has charged, and in the end no less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.usage_sync.billable_units import BillableUnits, ChargedUnits, billable_units
from sidecar.billing.usage_sync.metered_usage import NotShown, Shown
from sidecar.billing.usage_sync.planning import SegmentToCompare, new_pushed_usage
from sidecar.billing.usage_sync.pushed_usage import Segment
from sidecar.ledger.account_counts import AccountCounts
from tests.unit.billing.usage_sync.kit import HOUR, T0, link

FAULT = NotShown("OpenMeter's answer has 0.5, which is no count of units")
AWAY = NotShown("OpenMeter answers 503", is_fault=False)
HOUR_0 = T0 // HOUR


def billed(
    shown: list[Shown],
    charged: list[int],
    *,
    frozen: list[int] | None = None,
    period: int | None = -1,
    from_ledger: bool = False,
    over: bool = False,
    start_s: int = T0,
    window_s: int = HOUR,
    taken: int = 0,
) -> BillableUnits:
    """Windows one after another from ``start_s`` on. ``charged``: by hour; ``period`` -1: their sum and ``taken``."""
    frozen = frozen or [0] * len(shown)
    bounds = [start_s, *((start_s // window_s + n) * window_s for n in range(1, len(shown) + 1))]
    segments = [Segment(bounds[n], bounds[n + 1], pushed=units) for n, units in enumerate(frozen)]
    usage = new_pushed_usage(link(start_s, bounds[-1]), "api_calls").with_segments(
        [each for each in segments if each.pushed]
    )
    hours = {"api_calls": {start_s // HOUR + n: units for n, units in enumerate(charged)}}
    return billable_units(
        [SegmentToCompare(each, each.end_s) for each in segments],
        shown,
        usage,
        ChargedUnits("api_calls", AccountCounts(hours=hours), sum(charged) + taken if period == -1 else period, taken),
        from_ledger=from_ledger,
        end_s=bounds[-1] if over else bounds[-1] + 10 * HOUR,
        is_over=over,
    )


def test_what_both_have_is_billed() -> None:
    assert billed([5, 0, 7], [5, 0, 7]) == BillableUnits((5, 0, 7))


def test_what_openmeter_does_not_show_yet_waits() -> None:
    assert billed([5, 3], [5, 7]) == BillableUnits((5, 3))


def test_what_openmeter_shows_twice_is_billed_once() -> None:
    assert billed([10, 7], [5, 7]) == BillableUnits((5, 7), surplus=5)


def test_a_surplus_of_one_hour_does_not_make_up_for_another() -> None:
    assert billed([10, 2], [5, 7]) == BillableUnits((5, 2), surplus=5)


@pytest.mark.parametrize("shown", [FAULT, -3])
def test_an_hour_in_which_openmeter_cannot_be_believed_is_held_back(shown: Shown) -> None:
    found = billed([5, shown, 7], [5, 1, 7])
    assert found.units == (5, None, 7)
    assert found.held


def test_a_correction_of_the_ledger_counts() -> None:
    """Five units, of which an operator takes three back an hour later."""
    assert billed([5, -3], [5, -3]) == BillableUnits((2, 0))
    assert billed([5, -3, 4], [5, -3, 4], frozen=[5, 0, 0]).units == (5, 0, 1)


def test_an_outage_of_openmeter_holds_back_until_the_period_is_due() -> None:
    assert billed([AWAY, AWAY], [5, 7]).units == (None, None)
    assert billed([AWAY, AWAY], [5, 7], from_ledger=True, over=True) == BillableUnits((5, 7), from_ledger=12)


def test_what_is_due_is_billed_by_the_ledger() -> None:
    assert billed([5, 3], [5, 7], from_ledger=True, over=True) == BillableUnits((5, 7), from_ledger=4)
    found = billed([5, FAULT], [5, 7], from_ledger=True, over=True)
    assert (found.units, found.from_ledger) == ((5, 7), 7)
    assert found.held, "it is still said"


def test_what_the_ledger_has_billed_is_not_billed_again_when_openmeter_shows_it() -> None:
    assert billed([5, 7], [5, 7], frozen=[5, 7]) == BillableUnits((5, 7))
    assert billed([5, 0], [5, 7], frozen=[5, 7]) == BillableUnits((5, 7)), "nor is it an excess before"


def test_hours_cut_by_a_period_are_billed_from_the_periods_sum() -> None:
    """A period of Nepal begins at a quarter to: its first hour is another period's too."""
    start_s = T0 + 2_700
    assert billed([3, 4], [9, 4], period=6, start_s=start_s).units == (2, 4)
    assert billed([1, 4], [9, 4], period=6, start_s=start_s).units == (1, 4)
    assert billed([1, 4], [9, 4], period=6, start_s=start_s, from_ledger=True, over=True).units == (2, 4)


def test_what_the_ledger_charges_in_a_running_period_is_billed_by_the_hour_and_its_cut_first_hour_by_the_rest() -> None:
    start_s = T0 + 2_700
    assert billed([AWAY, AWAY], [9, 4, 3], period=5 + 4 + 3, start_s=start_s, from_ledger=True).units == (5, 4)


def test_windows_shorter_than_an_hour_are_bounded_by_the_period() -> None:
    assert billed([3, 4, 5], [10], period=10, window_s=900).units == (3, 4, 3)


def test_a_ledger_that_lost_its_counts_bills_nothing_more() -> None:
    found = billed([5, 7], [0, 0], frozen=[5, 0])
    assert found.units == (0, 0), "planning calls what was pushed an excess, and takes nothing back"


def test_what_lago_has_too_much_of_one_hour_leaves_no_room_for_the_others() -> None:
    """A ledger that lost an hour: Lago takes the five of it back no more, so of the seven that follow two are new."""
    assert billed([5, 7], [0, 7], frozen=[5, 0]).units == (0, 2)
    assert billed([5, 7], [0, 7], frozen=[5, 0], from_ledger=True, over=True).units == (0, 2)


def test_the_rest_of_a_period_comes_on_top_of_what_was_frozen() -> None:
    """Twelve units that no hour has; five and one are in Lago."""
    found = billed([5, 1], [0, 0], frozen=[5, 1], period=12, from_ledger=True, over=True)
    assert found.units == (0, 7)


def test_a_period_that_the_ledger_has_forgotten_is_bounded_by_its_hours() -> None:
    assert billed([6, 7], [5, 7], period=None).units == (5, 7)


def test_what_was_taken_over_is_billed_as_far_as_openmeter_shows_it() -> None:
    """An account that was loaded in the third hour, with 12 units that were counted before."""
    assert billed([5, 7, 3], [0, 0, 3], taken=12).units == (5, 7, 3)
    assert billed([5, 7, 3], [0, 0, 3], taken=12, frozen=[5, 7, 0], from_ledger=True, over=True).units == (5, 7, 3)
    found = billed([5, 7, 6], [0, 0, 3], taken=12)
    assert (found.units, found.surplus) == ((5, 7, 3), 3), "an hour with a count is bounded by it"


def test_what_was_taken_over_is_not_added_at_the_end() -> None:
    """It came from Lago."""
    assert billed([0, 0, 1], [0, 0, 3], taken=12, from_ledger=True, over=True).units == (0, 0, 3)
    assert billed([AWAY, AWAY, AWAY], [0, 2, 3], taken=12, from_ledger=True, over=True).units == (0, 2, 3)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6), st.integers(1, 30),
       st.sampled_from([0, 900]))  # fmt: skip
def test_of_what_was_taken_over_the_ledger_itself_bills_nothing(
    given_windows: list[tuple[int, int]], taken: int, cut_s: int
) -> None:
    charged, frozen = (list(each) for each in zip(*given_windows, strict=True))
    frozen = [min(pair) for pair in zip(frozen, charged, strict=True)]
    away: list[Shown] = [AWAY] * len(charged)
    found = billed(away, charged, frozen=frozen, taken=taken, from_ledger=True, over=True, start_s=T0 + cut_s)
    assert sum(units or 0 for units in found.units) == sum(charged)


windows = st.lists(
    st.tuples(st.integers(0, 20) | st.just(FAULT) | st.just(AWAY) | st.integers(-20, -1), st.integers(-5, 20),
              st.integers(0, 20)),
    min_size=1, max_size=6,
)  # fmt: skip


@given(windows, st.booleans(), st.sampled_from([0, 900, 2_700]))
def test_never_more_than_was_charged_and_all_of_it_at_the_end(
    given_windows: list[tuple[Shown, int, int]], due: bool, cut_s: int
) -> None:
    shown, charged, frozen = (list(each) for each in zip(*given_windows, strict=True))
    period = max(0, sum(charged))
    found = billed(shown, charged, frozen=frozen, period=period, from_ledger=due, over=due, start_s=T0 + cut_s)
    # Lago takes nothing back.
    in_lago = sum(before if units is None else max(units, before)
                  for units, before in zip(found.units, frozen, strict=True))  # fmt: skip
    assert in_lago <= max(period, sum(frozen))
    if due:
        assert in_lago == max(period, sum(frozen))
        assert None not in found.units
