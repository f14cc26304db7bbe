"""When a refused event is its own fault, and when the server's."""

from __future__ import annotations

import pytest

from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Batch, Entry
from sidecar.metering.publisher.delivery_pause import Accepted
from sidecar.metering.publisher.refused_batches import TRIALS, RefusedBatch, RefusedBatches

NOTHING = Accepted()


def entry(events: int) -> Entry:
    return Entry(0, b"1-0", {}, 100, events=events, open_events=events)


def batch(owner: Entry, events: int = 1) -> Batch:
    return Batch([b"{}"] * events, [owner] * events)


def refused(refused_at: int = 10, **values: bool | float | int) -> RefusedBatch:
    return RefusedBatch(batch(entry(1)), refused_at, is_refused=True, **{"due_s": 5.0, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accepted", "event", "is_at_fault"),
    [
        (NOTHING, refused(), False),
        (Accepted(10, 10), refused(), False),
        (Accepted(11, 11), refused(), True),
        (Accepted(11, 11), refused(excused=True), False),
        (Accepted(11, 0), refused(), False),
        (Accepted(11, 0), refused(trials=TRIALS - 1), True),
        (Accepted(10, 0), refused(trials=TRIALS - 1), False),
        (NOTHING, refused(neighbours_passed=True), True),
        (NOTHING, refused(neighbours_passed=True, excused=True), False),
    ],
)
def test_an_event_is_at_fault_once_others_are_accepted_that_were_sent_later(
    accepted: Accepted, event: RefusedBatch, is_at_fault: bool
) -> None:
    assert event.is_at_fault(accepted) is is_at_fault


def test_what_may_be_tried_is_proven_or_due_or_was_not_refused_by_itself() -> None:
    waiting = RefusedBatches(PublisherMetrics())
    waiting.add(refused(refused_at=10))
    assert waiting.take(Accepted(12, 10), 4.9) is None
    assert waiting.take(Accepted(12, 11), 4.9) is not None
    waiting.add(refused(refused_at=10))
    assert waiting.take(NOTHING, 5.0) is not None
    waiting.add(RefusedBatch(batch(entry(2), 2), 10, is_refused=False))
    assert waiting.take(NOTHING, 0.0) is not None
    assert waiting.take(Accepted(99, 99), 99.0) is None


def test_they_are_tried_in_turn() -> None:
    waiting = RefusedBatches(PublisherMetrics())
    first, second = refused(), refused()
    waiting.add(first)
    waiting.add(second)
    assert waiting.take(NOTHING, 5.0) is first
    waiting.done(first)
    waiting.add(first)
    assert [waiting.take(NOTHING, 5.0), waiting.take(NOTHING, 5.0)] == [second, first]


def test_void_proofs_need_new_acceptances() -> None:
    waiting = RefusedBatches(PublisherMetrics())
    one, taken = refused(neighbours_passed=True, trials=2), refused(due_s=0.0)
    waiting.add(taken)
    assert waiting.take(NOTHING, 1.0) is taken
    waiting.add(one)
    waiting.prove_anew(20)
    assert [each.is_at_fault(Accepted(20, 20)) for each in (one, taken)] == [False, False]
    assert [each.is_at_fault(Accepted(21, 21)) for each in (one, taken)] == [True, True]
    waiting.excuse()
    assert [each.is_at_fault(Accepted(99, 99)) for each in (one, taken)] == [False, False]


def test_the_metric_counts_events_also_while_they_are_tried() -> None:
    metrics = PublisherMetrics()
    waiting = RefusedBatches(metrics)
    waiting.add(RefusedBatch(batch(entry(3), 3), 1, is_refused=False))
    taken = waiting.take(NOTHING, 0.0)
    assert taken is not None
    waiting.add(refused())
    assert metrics.events_refused == 4
    waiting.done(taken)
    assert metrics.events_refused == len(waiting) == 1


def test_only_entries_of_which_nothing_was_delivered_are_given_up() -> None:
    metrics = PublisherMetrics()
    waiting = RefusedBatches(metrics)
    whole, begun, with_letter = entry(2), entry(2), entry(1)
    with_letter.dead_letters.append({b"dead-reason": b"x"})
    owners = [whole, begun, with_letter]
    waiting.add(RefusedBatch(Batch([b"1", b"2", b"3"], owners), 1, is_refused=False))
    waiting.add(RefusedBatch(batch(whole), 1, is_refused=True))
    assert waiting.give_up() == {whole}
    assert (metrics.events_refused, len(waiting)) == (2, 1)
    left = waiting.take(NOTHING, 0.0)
    assert left is not None
    assert (left.batch.bodies, left.batch.owners) == ([b"2", b"3"], [begun, with_letter])
