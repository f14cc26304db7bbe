"""What is remembered, in a real Valkey."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.usage_sync.frozen_events import Outgoing
from sidecar.billing.usage_sync.pushed_usage import Book, Segment
from sidecar.billing.usage_sync.sync_store import Change, Changed, Fenced, Past, Remembered, SyncStateError, ValkeyStore
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

T0 = 1_784_160_000
BOOK = Book(T0, "api:calls", "s1", T0 * 2000, T0, segments=(Segment(T0, T0 + 3600, 5, next_rev=1),))
EVENT = Outgoing(f"om:api:calls:s1:{T0}:0", "sub-1", "api:calls", "calls", Decimal(T0), 5, T0 * 1000, T0 * 1000, T0)
FREEZE = Change(books=[BOOK], outgoing=[EVENT])


@pytest.fixture
def store(any_client: Client, keys: Keys) -> ValkeyStore:
    return ValkeyStore(any_client, keys)


async def test_an_account_of_which_nothing_is_known_is_empty(store: ValkeyStore) -> None:
    assert await store.read("tpp-1") == Remembered()


async def test_what_is_written_is_read(store: ValkeyStore) -> None:
    change = Change(books=[BOOK], outgoing=[EVENT], past=Past(7, {"api:calls": 9}, {"api:calls": 2}, {}))
    answered = await store.apply("tpp-1", Remembered(), change, 3)
    read = await store.read("tpp-1")
    assert read == answered
    assert read.books == {(T0, "api:calls"): BOOK}
    assert read.outgoing == {EVENT.transaction_id: EVENT}
    assert (read.past, read.token) == (change.past, 3)


async def test_what_is_delivered_or_forgotten_is_gone(store: ValkeyStore) -> None:
    frozen = await store.apply("tpp-1", Remembered(), FREEZE, 3)
    gone = Change(delivered=[EVENT.transaction_id], forgotten=[(T0, "api:calls")])
    assert await store.apply("tpp-1", frozen, gone, 3) == await store.read("tpp-1")
    read = await store.read("tpp-1")
    assert (read.books, read.outgoing) == ({}, {})


async def test_a_lower_token_than_the_highest_seen_is_refused(store: ValkeyStore) -> None:
    frozen = await store.apply("tpp-1", Remembered(), FREEZE, 5)
    with pytest.raises(Fenced):
        await store.apply("tpp-1", frozen, Change(delivered=[EVENT.transaction_id]), 4)
    assert await store.read("tpp-1") == frozen
    await store.apply("tpp-1", frozen, Change(delivered=[EVENT.transaction_id]), 12)
    assert (await store.read("tpp-1")).token == 12


async def test_tokens_are_compared_as_numbers(store: ValkeyStore) -> None:
    frozen = await store.apply("tpp-1", Remembered(), FREEZE, 9)
    await store.apply("tpp-1", frozen, Change(delivered=[EVENT.transaction_id]), 10)
    assert (await store.read("tpp-1")).outgoing == {}


async def test_an_event_is_frozen_once_and_for_all(store: ValkeyStore) -> None:
    first = await store.apply("tpp-1", Remembered(), FREEZE, 3)
    other = Change(
        outgoing=[
            Outgoing(EVENT.transaction_id, "sub-1", "api:calls", "calls", Decimal(T0), 6, T0 * 1000, T0 * 1000, T0)
        ]
    )
    with pytest.raises(Changed):
        await store.apply("tpp-1", Remembered(), other, 3)
    assert await store.read("tpp-1") == first


async def test_a_change_is_written_as_a_whole_or_not_at_all(store: ValkeyStore) -> None:
    await store.apply("tpp-1", Remembered(), Change(books=[BOOK]), 3)
    with pytest.raises(Changed):
        await store.apply("tpp-1", Remembered(), FREEZE, 4)
    read = await store.read("tpp-1")
    assert (read.outgoing, read.token) == ({}, 3)


async def test_a_call_that_finds_its_own_work_done_is_answered_as_the_first_was(store: ValkeyStore) -> None:
    """The client repeats a call whose reply was lost."""
    first = await store.apply("tpp-1", Remembered(), FREEZE, 3)
    assert await store.apply("tpp-1", Remembered(), FREEZE, 3) == first
    gone = Change(delivered=[EVENT.transaction_id])
    await store.apply("tpp-1", first, gone, 3)
    await store.apply("tpp-1", first, gone, 3)
    with pytest.raises(Changed):
        await store.apply("tpp-1", Remembered(), FREEZE, 3)


async def test_large_changes_are_taken(store: ValkeyStore) -> None:
    events = [
        Outgoing(f"om:m:s1:{n}:0", "sub-1", "m", "calls", Decimal(n), 1, T0 * 1000, T0 * 1000, n) for n in range(6_000)
    ]
    await store.apply("tpp-1", Remembered(), Change(outgoing=events), 3)
    frozen = await store.read("tpp-1")
    assert len(frozen.outgoing) == 6_000
    await store.apply("tpp-1", frozen, Change(delivered=list(frozen.outgoing)), 3)
    assert (await store.read("tpp-1")).outgoing == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"book:x:m", b"{}"),
        (b"book:5:m", b"{}"),
        (b"out:om:1", b"[]"),
        (b"past", b"[]"),
        (b"past", b'{"until_s": 1, "pushed": 3, "late": {}, "carried": {}}'),
        (b"token", b"x"),
        (b"out:\xff", b"{}"),
    ],
)
async def test_what_cannot_be_read_is_named(
    store: ValkeyStore, any_client: Client, keys: Keys, name: bytes, value: bytes
) -> None:
    await any_client.hset(keys.sync("tpp-1"), name, value)
    with pytest.raises(SyncStateError, match="account tpp-1: field"):
        await store.read("tpp-1")
