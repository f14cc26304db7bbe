"""How events become batches."""

from __future__ import annotations

from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.metering.publisher.batches import Batch, Batcher, Entry


def entry(number: int) -> Entry:
    return Entry(0, b"%d-0" % number, {}, 1)


def drain(batcher: Batcher, *, partial: bool) -> list[Batch]:
    batches = []
    while (batch := batcher.cut(partial=partial)) is not None:
        batches.append(batch)
    return batches


sizes = st.lists(st.lists(st.integers(3, 400), max_size=8), max_size=8)


@given(sizes, st.integers(1, 10), st.integers(2, 1000))
def test_batches_hold_every_event_once_in_order_and_within_their_limits(
    sizes: list[list[int]], events_max: int, bytes_max: int
) -> None:
    batcher = Batcher(events_max, bytes_max)
    entries = [entry(number) for number in range(len(sizes))]
    bodies = []
    for each, lengths in zip(entries, sizes, strict=True):
        some = [b'"%s"' % (b"x" * (length - 2)) for length in lengths]
        batcher.add(each, some)
        bodies += [(body, each) for body in some]
    batches = drain(batcher, partial=True)
    assert [pair for batch in batches for pair in zip(batch.bodies, batch.owners, strict=True)] == bodies
    for batch in batches:
        body = batch.body(range(len(batch)))
        assert orjson.loads(body) == [orjson.loads(event) for event in batch.bodies]
        assert 1 <= len(batch) <= events_max
        assert len(body) <= bytes_max or len(batch) == 1


@given(sizes, st.integers(1, 10), st.integers(2, 1000))
def test_a_batch_that_could_still_grow_waits(sizes: list[list[int]], events_max: int, bytes_max: int) -> None:
    batcher = Batcher(events_max, bytes_max)
    for number, lengths in enumerate(sizes):
        batcher.add(entry(number), [b"x" * length for length in lengths])
    drain(batcher, partial=False)
    rest = batcher.cut(partial=True)
    assert len(batcher) == 0
    assert rest is None or (len(rest) < events_max and len(rest.body(range(len(rest)))) < bytes_max)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 5), st.randoms(use_true_random=False))
def test_an_entry_is_done_when_its_last_event_is_closed_and_not_before(
    counts: list[int], events_max: int, random: Random
) -> None:
    batcher = Batcher(events_max, 10_000)
    entries = [entry(number) for number in range(len(counts))]
    for each, count in zip(entries, counts, strict=True):
        batcher.add(each, [b"1"] * count)
    parts = [(batch, range(i, i + 1)) for batch in drain(batcher, partial=True) for i in range(len(batch))]
    random.shuffle(parts)
    open_events = dict(zip(entries, counts, strict=True))
    for batch, part in parts:
        owner = batch.owners[part.start]
        open_events[owner] -= 1
        assert batch.close(part) == ([owner] if open_events[owner] == 0 else [])
    assert not any(open_events.values())


@pytest.mark.parametrize(("limit", "expected"), [(5_000, 1_000), (500, 500)])
def test_what_is_learned_about_size_only_makes_batches_smaller(limit: int, expected: int) -> None:
    batcher = Batcher(100, 1_000)
    batcher.shrink(limit)
    batcher.add(entry(1), [b"x" * 99] * 40)
    assert {len(batch.body(range(len(batch)))) // 100 * 100 for batch in drain(batcher, partial=False)} <= {
        expected - 100,
        expected,
    }
