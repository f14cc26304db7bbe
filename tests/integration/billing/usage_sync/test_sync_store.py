"""The sync state, in a real Valkey."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.usage_sync.frozen_events import FrozenEvent
from sidecar.billing.usage_sync.pushed_usage import PushedUsage, Segment
from sidecar.billing.usage_sync.sync_store import (
    Changed,
    Fenced,
    ForgottenPeriods,
    SyncState,
    SyncStateChange,
    SyncStateError,
    ValkeySyncStore,
)
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

T0 = 1_784_160_000
PUSHED_USAGE = PushedUsage(T0, "api:calls", "s1", T0 * 2000, T0, segments=(Segment(T0, T0 + 3600, 5, next_rev=1),))
EVENT = FrozenEvent(f"om:api:calls:s1:{T0}:0", "sub-1", "api:calls", "calls", Decimal(T0), 5, T0 * 1000, T0 * 1000, T0)
FREEZE = SyncStateChange(pushed_usages=[PUSHED_USAGE], frozen_events=[EVENT])


@pytest.fixture
def store(any_client: Client, keys: Keys) -> ValkeySyncStore:
    return ValkeySyncStore(any_client, keys)


async def test_an_account_of_which_nothing_is_known_is_empty(store: ValkeySyncStore) -> None:
    assert await store.read("tpp-1") == SyncState()


async def test_what_is_written_is_read(store: ValkeySyncStore) -> None:
    change = SyncStateChange(
        pushed_usages=[PUSHED_USAGE],
        frozen_events=[EVENT],
        forgotten_periods=ForgottenPeriods(7, {"api:calls": 9}, {"api:calls": 2}, {}),
    )
    answered = await store.apply("tpp-1", SyncState(), change, 3)
    read = await store.read("tpp-1")
    assert read == answered
    assert read.pushed_usages == {(T0, "api:calls"): PUSHED_USAGE}
    assert read.frozen_events == {EVENT.transaction_id: EVENT}
    assert (read.forgotten_periods, read.token) == (change.forgotten_periods, 3)


async def test_what_is_delivered_or_forgotten_is_gone(store: ValkeySyncStore) -> None:
    frozen = await store.apply("tpp-1", SyncState(), FREEZE, 3)
    gone = SyncStateChange(delivered=[EVENT.transaction_id], forgotten=[(T0, "api:calls")])
    assert await store.apply("tpp-1", frozen, gone, 3) == await store.read("tpp-1")
    read = await store.read("tpp-1")
    assert (read.pushed_usages, read.frozen_events) == ({}, {})


async def test_a_lower_token_than_the_highest_seen_is_refused(store: ValkeySyncStore) -> None:
    frozen = await store.apply("tpp-1", SyncState(), FREEZE, 5)
    with pytest.raises(Fenced):
        await store.apply("tpp-1", frozen, SyncStateChange(delivered=[EVENT.transaction_id]), 4)
    assert await store.read("tpp-1") == frozen
    await store.apply("tpp-1", frozen, SyncStateChange(delivered=[EVENT.transaction_id]), 12)
    assert (await store.read("tpp-1")).token == 12


async def test_tokens_are_compared_as_numbers(store: ValkeySyncStore) -> None:
    frozen = await store.apply("tpp-1", SyncState(), FREEZE, 9)
    await store.apply("tpp-1", frozen, SyncStateChange(delivered=[EVENT.transaction_id]), 10)
    assert (await store.read("tpp-1")).frozen_events == {}


async def test_an_event_is_frozen_once_and_for_all(store: ValkeySyncStore) -> None:
    first = await store.apply("tpp-1", SyncState(), FREEZE, 3)
    other = SyncStateChange(
        frozen_events=[
            FrozenEvent(EVENT.transaction_id, "sub-1", "api:calls", "calls", Decimal(T0), 6, T0 * 1000, T0 * 1000, T0)
        ]
    )
    with pytest.raises(Changed):
        await store.apply("tpp-1", SyncState(), other, 3)
    assert await store.read("tpp-1") == first


async def test_a_change_is_written_as_a_whole_or_not_at_all(store: ValkeySyncStore) -> None:
    await store.apply("tpp-1", SyncState(), SyncStateChange(pushed_usages=[PUSHED_USAGE]), 3)
    with pytest.raises(Changed):
        await store.apply("tpp-1", SyncState(), FREEZE, 4)
    read = await store.read("tpp-1")
    assert (read.frozen_events, read.token) == ({}, 3)


async def test_a_call_that_finds_its_own_work_done_is_answered_as_the_first_was(store: ValkeySyncStore) -> None:
    """The client repeats a call whose reply was lost."""
    first = await store.apply("tpp-1", SyncState(), FREEZE, 3)
    assert await store.apply("tpp-1", SyncState(), FREEZE, 3) == first
    gone = SyncStateChange(delivered=[EVENT.transaction_id])
    await store.apply("tpp-1", first, gone, 3)
    await store.apply("tpp-1", first, gone, 3)
    with pytest.raises(Changed):
        await store.apply("tpp-1", SyncState(), FREEZE, 3)


async def test_large_changes_are_taken(store: ValkeySyncStore) -> None:
    events = [
        FrozenEvent(f"om:m:s1:{n}:0", "sub-1", "m", "calls", Decimal(n), 1, T0 * 1000, T0 * 1000, n)
        for n in range(6_000)
    ]
    await store.apply("tpp-1", SyncState(), SyncStateChange(frozen_events=events), 3)
    frozen = await store.read("tpp-1")
    assert len(frozen.frozen_events) == 6_000
    await store.apply("tpp-1", frozen, SyncStateChange(delivered=list(frozen.frozen_events)), 3)
    assert (await store.read("tpp-1")).frozen_events == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"usage:x:m", b"{}"),
        (b"usage:5:m", b"{}"),
        (b"event:om:1", b"[]"),
        (b"forgotten", b"[]"),
        (b"forgotten", b'{"until_s": 1, "pushed": 3, "late": {}, "carried": {}}'),
        (b"token", b"x"),
        (b"event:\xff", b"{}"),
    ],
)
async def test_what_cannot_be_read_is_named(
    store: ValkeySyncStore, any_client: Client, keys: Keys, name: bytes, value: bytes
) -> None:
    await any_client.hset(keys.sync("tpp-1"), name, value)
    with pytest.raises(SyncStateError, match="account tpp-1: field"):
        await store.read("tpp-1")
