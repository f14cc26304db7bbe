"""Sealed batches: what they charge is what the batch charged, in the same order, and they take no holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ledger.client.batch import Batch, encode
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Event, Hold, IdempotencyKey
from sidecar.ledger.client.sealed import SealedBatch, SealedError, accounts_of, events_of, origin_of, unseal
from sidecar.ledger.client.settled_window import SettledWindow
from sidecar.ledger.keys import Keys
from sidecar.ledger.spool.window_file import WindowFile
from sidecar.valkey.command import bulk

SETTINGS = LinkSettings()
KEYS = Keys()
ACCOUNTS = st.sampled_from(["a", "Größe", "}:account:x", "b\r\nc"])
KEY = IdempotencyKey(b"\x80" * 16, b"f" * 16, 2, True)


def account_key(account: str) -> bytes:
    return b"".join(bulk(name.encode()) for name in (KEYS.state(account), KEYS.account(account)))


def event(account: str, units: int) -> Event:
    return account, "api_calls", units, "/ünits", "GET", 200, 1.5, None, "trace"


def seal(batch: Batch, number: int = 7) -> SealedBatch:
    batch.number = number
    keys, arguments, _ = encode(batch, "gw.03", SETTINGS, {"a": 5}, account_key, 6, b"\x00\xff")
    return SealedBatch(3, number, keys, arguments, len(batch.settles()), 1_800_000_000_000, batch.refusal)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    batch = Batch(draw(st.integers(0, 2000)))
    for _ in range(draw(st.integers(0, 12))):
        units = draw(st.integers(1, 70_000))
        hold = Hold(draw(ACCOUNTS), draw(st.sampled_from(["x", "y"])), units, None, None)
        hold.epoch = draw(st.sampled_from([batch.epoch, 3]))
        match draw(
            st.sampled_from(["hold", "settle", "release", "keyed hold", "keyed settle", "keyed release", "spool"])
        ):
            case "hold":
                batch.add_hold(hold)
            case "settle":
                batch.add_settle(hold, event(hold.account, units))
            case "release":
                batch.add_release(hold, draw(st.booleans()))
            case "keyed hold":
                hold.key = KEY
                batch.add_hold(hold)
            case "keyed settle":
                hold.key, hold.mark = KEY, 4097
                batch.add_settle(hold, event(hold.account, units))
            case "keyed release":
                hold.key, hold.mark = KEY, 4097
                batch.add_release(hold)
            case "spool":
                hold.key, hold.record = draw(st.sampled_from([None, KEY])), b"r" * 16
                batch.add_settle(hold, event(hold.account, units))
    return batch


def charged(batch: Batch) -> list[Any]:
    groups = {
        key: (group.settled, group.released, group.late)
        for key, group in batch.groups.items()
        if group.settled or group.released or group.late
    }
    singles = [
        (s.hold.account, s.hold.metric, s.hold.units, s.kind, s.event, s.hold.record, s.hold.mark and s.hold.epoch,
         s.hold.key and (s.hold.key.digest, s.hold.key.fingerprint))
        for s in batch.singles if s.kind != 1
    ]  # fmt: skip
    return [batch.epoch, groups, singles, batch.events]


@given(batches())
def test_a_sealed_batch_charges_what_the_batch_charged_and_holds_nothing(batch: Batch) -> None:
    sealed = SealedBatch.from_bytes(seal(batch).to_bytes())
    again = unseal(sealed)
    assert charged(again) == charged(batch)
    assert again.waiting() == []
    assert not again.drop_holds()
    assert again.number == 7
    assert charged(unseal(seal(again))) == charged(batch)
    assert events_of(sealed) == [each for each, _ in batch.settles()]
    assert origin_of(sealed) == "gw.03"
    assert set(accounts_of(sealed)) >= {each[0] for each in events_of(sealed)}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xc1",
        b"nonsense",
        SealedBatch(1, 2, [], [b"\x01"], 1).to_bytes(),
        SealedBatch(1, 2, [], [], 1).to_bytes(),
    ],
)
def test_what_was_not_sealed_is_an_error(damaged: bytes) -> None:
    with pytest.raises(SealedError):
        unseal(SealedBatch.from_bytes(damaged))


def test_a_window_forgets_the_oldest_and_counts_it() -> None:
    window = SettledWindow(3_000)
    for number in range(1, 21):
        window.add(number % 2, number, [b"key"], [bytes(100)], 3)
    assert window.bytes_used <= 3_000
    kept = len(window)
    assert 0 < kept < 20
    taken, beyond = window.take_after(1, 3)
    assert [each.number for each in taken] == [n for n in range(21 - kept, 21) if n % 2 and n > 3]
    assert beyond == 3 * sum(1 for n in range(4, 21 - kept) if n % 2)
    assert window.take_after(1, 3) == ([], 0), "they come again when they are confirmed again"
    assert len(window) == kept - len(taken)


def test_a_window_of_no_bytes_keeps_nothing() -> None:
    window = SettledWindow(0)
    window.add(0, 1, [], [b"x"], 2)
    assert window.take_after(0, 0) == ([], 2)
    assert window.bytes_used == 0


def test_what_a_window_has_no_room_for_is_on_disk_as_long_as_there_is_room(tmp_path: Path) -> None:
    window, file = SettledWindow(3_000), WindowFile(tmp_path, 20_000)
    window.overflow = file
    for number in range(1, 201):
        window.add(number % 2, number, [b"key"], [bytes(100)], 3)
        if number % 7 == 0:
            file.flush()
    assert file.bytes_used <= 20_000
    assert list(tmp_path.iterdir()) == [], "nobody else reads it"
    taken, beyond = window.take_after(1, 50)
    numbers = [each.number for each in taken]
    assert numbers == list(range(numbers[0], 200, 2))
    assert 51 < numbers[0] < 160, "more than memory has, not all"
    assert beyond == 3 * len(range(51, numbers[0], 2))
    assert window.take_after(0, 190)[1] == 0
    file.close()
