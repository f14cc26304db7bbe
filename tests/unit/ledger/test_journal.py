"""The spool's journal: what was acknowledged comes back whatever happened, and nothing else does."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.ledger.spool import damaged_parts, journal
from sidecar.ledger.spool.journal import Damage, Journal, JournalEntry, JournalError, JournalFull, dead_journals
from sidecar.ledger.spool.journal_format import (
    HEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    RECORD_HEAD_BYTES,
    SLOT_BYTES,
    SLOT_OFFSETS,
    WINDOW_BYTES,
)

MIB = 1_048_576


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def new(directory: Path, name: str = "a", *, bytes_max: int = MIB) -> Journal:
    return Journal.create(directory, name, bytes_max=bytes_max)


def adopted(directory: Path, name: str = "a") -> Journal:
    found = Journal.adopt(directory, name)
    assert found is not None
    return found


def of_dead(directory: Path, data: bytes, name: str = "a") -> Journal:
    """The journal that a dead process left in this state."""
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{name}.journal"
    path.write_bytes(data)
    path.chmod(0o600)
    return adopted(directory, name)


def entries(found: Journal) -> list[tuple[int, bytes]]:
    return [(item.sequence, item.payload) for item in found.entries() if isinstance(item, JournalEntry)]


def damages(found: Journal) -> list[Damage]:
    return [item for item in found.entries() if isinstance(item, Damage)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


PAYLOADS = [b"one", b"", b"three" * 9, bytes(7), b"\xc5qsr" * 3]


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """A file with the five payloads."""
    found = new(tmp_path / "made")
    found.append(PAYLOADS[:2])
    found.append(PAYLOADS[2:])
    found.close(remove=False)
    return (tmp_path / "made" / "a.journal").read_bytes()


ENDS = [HEAD_BYTES + sum(RECORD_HEAD_BYTES + len(p) for p in PAYLOADS[:n]) for n in range(len(PAYLOADS) + 1)]
"""Where the records of that file end."""
NUMBERED = list(enumerate(PAYLOADS, 1))


# what it is for


def test_what_was_appended_comes_back_in_order_to_whoever_adopts_it(spool: Path) -> None:
    own = new(spool)
    assert own.append(PAYLOADS[:2]) == [1, 2]
    assert own.append(PAYLOADS[2:]) == [3, 4, 5]
    assert own.append([]) == []
    assert entries(own) == NUMBERED
    identity = own.id
    own.close(remove=False)
    heir = adopted(spool)
    assert (entries(heir), damages(heir), heir.pending, heir.position, heir.id) == (NUMBERED, [], 5, 0, identity)
    heir.close(remove=True)
    assert names(spool) == ["a.journal"], "what is pending stays"


def test_what_is_done_does_not_come_back(spool: Path) -> None:
    own = new(spool)
    own.append(PAYLOADS)
    own.advance(2)
    assert (own.position, own.pending, entries(own)) == (2, 3, NUMBERED[2:])
    own.advance(1)
    assert own.position == 2, "it never goes back"
    own.close(remove=False)
    heir = adopted(spool)
    assert (heir.position, heir.pending, entries(heir)) == (2, 3, NUMBERED[2:])
    heir.advance(5)
    assert (heir.pending, entries(heir)) == (0, [])
    heir.close(remove=True)
    assert names(spool) == []


def test_a_journal_with_nothing_left_is_cut_back_and_its_sequences_go_on(spool: Path) -> None:
    own = new(spool)
    empty = own.size
    own.append(PAYLOADS)
    own.advance(5)
    assert (own.size, (spool / "a.journal").stat().st_size) == (empty, empty)
    assert own.append([b"six"]) == [6]
    own.close(remove=False)
    heir = adopted(spool)
    assert entries(heir) == [(6, b"six")]


def test_an_entry_that_does_not_exist_cannot_be_done(spool: Path) -> None:
    own = new(spool)
    own.append([b"x"])
    with pytest.raises(JournalError, match=r"a\.journal: it has entries up to 1, none with sequence 2"):
        own.advance(2)


def test_a_reader_goes_on_while_the_journal_is_advanced_appended_to_and_cut_back(spool: Path) -> None:
    own = new(spool)
    own.append(PAYLOADS)
    seen = []
    for item in own.entries():
        assert isinstance(item, JournalEntry)
        seen.append(item.sequence)
        own.append([b"later"])
        own.advance(item.sequence)
    assert seen == [1, 2, 3, 4, 5], "what comes later is the next reader's"
    assert [number for number, _ in entries(own)] == [6, 7, 8, 9, 10]
    reading = own.entries()
    next(reading)
    own.advance(10)
    own.append([b"x"] * 10)
    assert list(reading) == []


def test_a_living_process_s_journal_is_nobody_else_s(spool: Path) -> None:
    own = new(spool)
    own.append([b"x"])
    assert Journal.adopt(spool, "a") is None
    assert Journal.adopt(spool, "b") is None, "one that is gone"
    assert Journal.adopt(spool.parent / "absent", "a") is None
    assert dead_journals(spool) == ["a"]
    with pytest.raises(JournalError, match=r"a\.journal: File exists"):
        new(spool)
    own.close(remove=False)
    heir = adopted(spool)
    assert Journal.adopt(spool, "a") is None
    with pytest.raises(JournalError, match="nothing is added to it"):
        heir.append([b"y"])


def test_a_process_that_is_killed_leaves_what_it_was_told_is_on_disk(spool: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from sidecar.ledger.spool.journal import Journal
own = Journal.create(Path(sys.argv[1]), "a", bytes_max=1_000_000)
for number in range(1, 10):
    own.append([b"%d" % number])
own.advance(4)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(spool)], check=False)
    assert entries(adopted(spool)) == [(n, b"%d" % n) for n in range(5, 10)]


def test_a_file_never_grows_beyond_its_limit(spool: Path) -> None:
    own = new(spool, bytes_max=HEAD_BYTES + 3 * (RECORD_HEAD_BYTES + 100))
    own.append([bytes(100)] * 3)
    with pytest.raises(JournalFull, match=r"a\.journal: it is full, it may have \d+ bytes"):
        own.append([b""])
    assert len(entries(own)) == 3
    own.advance(3)
    assert own.append([b"x"]) == [4]
    with pytest.raises(JournalError, match="an entry of 4194305 bytes, at most 4194304"):
        own.append([bytes(PAYLOAD_BYTES_MAX + 1)])


def test_an_entry_may_be_as_long_as_the_limit(spool: Path) -> None:
    own = new(spool, bytes_max=32 * MIB)
    longest = os.urandom(PAYLOAD_BYTES_MAX)
    own.append([longest, b"x", longest])
    assert entries(own) == [(1, longest), (2, b"x"), (3, longest)]


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a\n", "a" * 201, "a\0"])
def test_a_name_that_is_no_plain_name_is_refused(spool: Path, name: str) -> None:
    for use in (lambda: new(spool, name), lambda: Journal.adopt(spool, name)):
        with pytest.raises(JournalError, match="is no name of a journal"):
            use()


# crashes


def test_a_file_cut_at_any_byte_gives_back_every_record_before_the_cut(spool: Path, written: bytes) -> None:
    for cut in (*range(0, HEAD_BYTES, 64), *range(HEAD_BYTES, len(written) + 1)):
        if 0 < cut < SLOT_BYTES:  # no slot of the head is whole
            with pytest.raises(JournalError, match=r"a\.journal: its head is damaged"):
                of_dead(spool, written[:cut])
            continue
        found = of_dead(spool, written[:cut])
        whole = sum(end <= cut for end in ENDS[1:])
        assert entries(found) == NUMBERED[:whole], cut
        if cut < HEAD_BYTES and cut:
            assert [each.reason[:15] for each in damages(found)] == ["the file is cut"]
        else:
            assert damages(found) == [], "a torn end was never promised"
        found.close(remove=False)


def test_a_tail_of_zeros_from_any_byte_on_is_damage_and_no_torn_end(spool: Path, written: bytes) -> None:
    for start in range(HEAD_BYTES, len(written)):
        data = written[:start] + bytes(len(written) - start)
        found = of_dead(spool, data)
        whole = sum(data[:end] == written[:end] for end in ENDS[1:])  # a payload may end in zeros itself
        assert entries(found) == NUMBERED[:whole], start
        lost = damages(found)
        assert [(each.offset, each.length) for each in lost] == (
            [(ENDS[whole], len(data) - ENDS[whole])] if whole < len(PAYLOADS) else []
        ), start
        found.close(remove=False)


@pytest.mark.parametrize("zeros", [1, 31, 32, 100, 5000])
def test_zeros_behind_the_last_record_are_damage(spool: Path, written: bytes, zeros: int) -> None:
    found = of_dead(spool, written + bytes(zeros))
    assert entries(found) == NUMBERED
    assert damages(found) == [Damage(len(written), zeros, "zeros, up to the end, from sequence 6 on")]


def test_a_bit_that_changed_anywhere_costs_its_own_record(spool: Path, written: bytes) -> None:
    for at in range(HEAD_BYTES, len(written)):
        data = bytearray(written)
        data[at] ^= 1 << at % 8
        found = of_dead(spool, bytes(data))
        hit = sum(end <= at for end in ENDS[1:])
        assert entries(found) == NUMBERED[:hit] + NUMBERED[hit + 1 :], at
        (lost,) = damages(found)
        assert (lost.offset, lost.length) == (ENDS[hit], ENDS[hit + 1] - ENDS[hit]), at
        found.close(remove=False)


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=8),
    st.data(),
)
@settings(max_examples=60)
def test_whatever_is_overwritten_the_rest_comes_back_once_and_nothing_is_invented(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    own = new(directory)
    own.append(payloads)
    position = data.draw(st.integers(0, len(payloads) - 1))
    own.advance(position)
    own.close(remove=False)
    path = directory / "a.journal"
    content = bytearray(path.read_bytes())
    bounds = [HEAD_BYTES]
    for payload in payloads:
        bounds.append(bounds[-1] + RECORD_HEAD_BYTES + len(payload))
    start = data.draw(st.integers(HEAD_BYTES, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    junk = data.draw(st.binary(min_size=end - start, max_size=end - start))
    before = bytes(content)
    content[start:end] = junk
    path.write_bytes(content)
    found = adopted(directory)
    same = [
        (n, payload)
        for n, payload in enumerate(payloads, 1)
        if n > position and content[bounds[n - 1] : bounds[n]] == before[bounds[n - 1] : bounds[n]]
    ]
    assert entries(found) == same
    assert found.pending == len(same)
    whole = {n for n, _ in same}
    lost = [n for n in range(position + 1, len(payloads) + 1) if n not in whole]
    if lost and not (start >= bounds[-2] and len(damages(found)) == 0):  # junk can look like a torn end
        covered = damages(found)
        assert all(any(d.offset <= bounds[n - 1] < d.offset + d.length for d in covered) for n in lost)


def test_records_that_are_missing_or_come_again_are_damage(spool: Path, written: bytes) -> None:
    first, second, third = (written[ENDS[n] : ENDS[n + 1]] for n in range(3))
    found = of_dead(spool, written[:HEAD_BYTES] + first + third)
    assert damages(found) == [Damage(ENDS[1], 0, "sequence 2 is missing")]
    assert [n for n, _ in entries(found)] == [1, 3]
    found.close(remove=False)
    found = of_dead(spool, written[:HEAD_BYTES] + first + second + first + third)
    assert damages(found) == [Damage(ENDS[2], len(first), "sequence 1 again")]
    assert [n for n, _ in entries(found)] == [1, 2, 3]


def test_a_file_that_ends_before_its_position_lost_what_was_behind_it(spool: Path) -> None:
    own = new(spool)
    own.append(PAYLOADS)
    own.advance(3)
    own.close(remove=False)
    found = of_dead(spool, (spool / "a.journal").read_bytes()[: ENDS[2]])
    assert entries(found) == []
    assert damages(found) == [
        Damage(ENDS[2], 0, f"the file is cut off before its position; it had {ENDS[3]} bytes or more")
    ]


def test_a_torn_record_that_is_not_the_next_one_is_damage(spool: Path, written: bytes) -> None:
    fourth = written[ENDS[3] : ENDS[4]]
    found = of_dead(spool, written[: ENDS[2]] + fourth[:-1])
    assert [each.offset for each in damages(found)] == [ENDS[2]]
    found.close(remove=False)
    found = of_dead(spool, written[: ENDS[3]] + fourth[:-1])
    assert damages(found) == []


@pytest.mark.parametrize("shift", range(-5, 3))
def test_the_next_whole_record_is_found_wherever_the_reader_s_window_ends(
    spool: Path, written: bytes, shift: int
) -> None:
    junk = b"\x01" * (WINDOW_BYTES + 1 + shift)
    found = of_dead(spool, written[: ENDS[1]] + junk + written[ENDS[1] :])
    assert entries(found) == NUMBERED
    assert damages(found) == [Damage(ENDS[1], len(junk), "no record begins here; nothing is lost")]


def test_a_record_of_another_journal_is_none_of_this_one(spool: Path, written: bytes) -> None:
    other = new(spool, "b")
    other.append([b"fifty pounds"])
    other.close(remove=False)
    foreign = (spool / "b.journal").read_bytes()[HEAD_BYTES:]
    found = of_dead(spool, written[: ENDS[0]] + foreign)
    assert entries(found) == []
    assert len(damages(found)) == 1


def test_a_record_that_a_caller_put_into_a_payload_is_not_read(spool: Path, written: bytes) -> None:
    """A caller who knows the format, but not the id, which is nowhere but in the file."""
    own = new(spool, "b")
    own.append([b"before " + written[HEAD_BYTES:] + b" after", b"second"])
    own.close(remove=False)
    path = spool / "b.journal"
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES] ^= 1  # the record around it is damaged, so the search begins
    path.write_bytes(content)
    assert entries(adopted(spool, "b")) == [(2, b"second")]


def test_a_length_out_of_bounds_is_damage_and_not_an_allocation(spool: Path, written: bytes) -> None:
    data = bytearray(written)
    data[ENDS[1] + 4 : ENDS[1] + 8] = b"\xff" * 4
    found = of_dead(spool, bytes(data))
    (lost,) = damages(found)
    assert lost.reason == "a record's length is out of bounds; sequence 2 is lost"
    assert [n for n, _ in entries(found)] == [1, 3, 4, 5]


@pytest.mark.parametrize("slot", SLOT_OFFSETS)
def test_one_slot_of_the_head_is_enough(spool: Path, slot: int) -> None:
    own = new(spool)
    own.append(PAYLOADS)
    own.advance(3)
    own.close(remove=False)
    path = spool / "a.journal"
    content = bytearray(path.read_bytes())
    content[slot : slot + 4096] = bytes(4096)
    path.write_bytes(content)
    assert entries(adopted(spool)) == NUMBERED[3:]


@pytest.mark.parametrize("newer", SLOT_OFFSETS)
def test_of_two_slots_the_newer_one_counts(spool: Path, newer: int) -> None:
    own = new(spool)
    own.append(PAYLOADS)
    path = spool / "a.journal"
    before = path.read_bytes()
    own.advance(3)
    own.close(remove=False)
    content = bytearray(before)
    content[newer : newer + SLOT_BYTES] = path.read_bytes()[newer : newer + SLOT_BYTES]
    path.write_bytes(content)
    assert entries(adopted(spool)) == NUMBERED[3:]


def test_a_copy_or_a_later_release_s_file_is_refused_and_stays(spool: Path, written: bytes) -> None:
    of_dead(spool, written).close(remove=False)
    (spool / "a.journal").rename(spool / "c.journal")
    with pytest.raises(JournalError, match=r"c\.journal: it is a copy or was renamed, it says 'a'"):
        Journal.adopt(spool, "c")
    assert names(spool) == ["c.journal"]


# a disk that refuses


class Disk:
    """Stands for ``os`` where the journal writes. It fails at the call numbered ``fails_at``, and goes on failing while
    ``broken``. A disk that breaks at a given call cannot be had otherwise."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at: int | None = None
        self.stays_broken = False
        self.short = False

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(os, name)
        return self._wrap(real) if name in ("pwrite", "fsync", "fdatasync", "ftruncate") else real

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            self.calls += 1
            if self.fails_at is not None and (
                self.calls == self.fails_at or (self.stays_broken and self.calls > self.fails_at)
            ):
                if self.short and real is os.pwrite and self.calls == self.fails_at:
                    data, offset = arguments
                    real(descriptor, bytes(data)[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, *arguments)

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(journal, "os", disk)
    monkeypatch.setattr(damaged_parts, "os", disk)
    return disk


@pytest.mark.parametrize("stays_broken", [False, True])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("fails_at", range(1, 12))
def test_whatever_call_the_disk_refuses_what_was_promised_is_kept_and_nothing_comes_twice(
    spool: Path, disk: Disk, fails_at: int, short: bool, stays_broken: bool
) -> None:
    own = new(spool)
    promised: dict[int, bytes] = {}
    done = asked = 0
    disk.calls, disk.fails_at, disk.short, disk.stays_broken = 0, fails_at, short, stays_broken

    def append(*payloads: bytes) -> None:
        size = own.size
        try:
            promised.update(zip(own.append(payloads), payloads, strict=True))
        except OSError:
            assert own.size == size

    def advance(sequence: int) -> None:
        nonlocal done, asked
        asked = max(asked, sequence)
        try:
            own.advance(sequence)
        except OSError:
            assert own.position == done
        else:
            done = sequence

    append(b"a", b"b")
    append(b"c")
    advance(max(promised, default=0) and 1)
    append(b"d")
    advance(max(promised, default=0))
    append(b"e")
    disk.fails_at = None
    append(b"f")
    left = {n: payload for n, payload in promised.items() if n > done}
    assert dict(entries(own)) == left
    assert damages(own) == []
    own.close(remove=False)
    heir = adopted(spool)
    # What the caller called done may have reached the disk although the disk refused.
    assert done <= heir.position <= asked
    assert dict(entries(heir)) == {n: payload for n, payload in left.items() if n > heir.position}
    assert damages(heir) == []


def test_an_append_that_could_not_even_be_taken_back_is_never_read_as_part_of_a_later_one(
    spool: Path, disk: Disk
) -> None:
    own = new(spool)
    own.append([b"first"])
    disk.calls, disk.fails_at, disk.stays_broken = 0, 2, True  # both records are in the file, the fsync fails
    with pytest.raises(OSError):
        own.append([b"never", b"promised"])
    assert (spool / "a.journal").stat().st_size > own.size
    disk.fails_at = None
    assert own.append([b"later"]) == [2]
    own.close(remove=False)
    assert entries(adopted(spool)) == [(1, b"first"), (2, b"later")]


# damage is kept


def damaged(written: bytes, *records: int) -> bytes:
    data = bytearray(written)
    for n in records:
        data[ENDS[n] - 1 if n else ENDS[0]] ^= 1
    return bytes(data)


def test_damaged_parts_are_kept_in_a_file_before_the_journal_goes(spool: Path, written: bytes) -> None:
    found = of_dead(spool, damaged(written, 3))
    kept = found.keep_damaged()
    assert kept == spool / "a.damaged-1"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    content = kept.read_bytes()
    assert content.startswith(b"a offset=%d length=%d: a payload's check" % (ENDS[2], ENDS[3] - ENDS[2]))
    assert damaged(written, 3)[ENDS[2] : ENDS[3]] in content
    assert found.keep_damaged() == kept, "not a second time"
    found.advance(5)
    found.close(remove=True)
    assert names(spool) == ["a.damaged-1"]


def test_a_journal_without_damage_has_no_such_file(spool: Path, written: bytes) -> None:
    found = of_dead(spool, written[:-3])
    assert found.keep_damaged() is None
    found.advance(4)
    found.close(remove=True)
    assert names(spool) == []


@pytest.mark.parametrize("advances", [[5], [2, 5], [4, 5], [5, 5], []])
def test_damage_is_never_deleted_by_an_owner_who_forgets_to_keep_it(
    spool: Path, written: bytes, advances: list[int]
) -> None:
    data = damaged(written, 3) if advances else written[: ENDS[0]] + bytes(100)
    found = of_dead(spool, data)
    for sequence in advances:
        found.advance(sequence)
    assert found.pending == 0
    found.close(remove=True)
    assert names(spool) == ["a.damaged-1"]


def test_damage_behind_the_last_whole_record_is_kept_too(spool: Path, written: bytes) -> None:
    found = of_dead(spool, written + bytes(64))
    found.advance(5)
    assert (spool / "a.damaged-1").read_bytes().count(b"\0") == 64
    found.close(remove=True)
    assert names(spool) == ["a.damaged-1"]


def test_a_second_journal_of_the_name_keeps_its_damage_in_a_second_file(spool: Path, written: bytes) -> None:
    for _ in range(2):
        found = of_dead(spool, damaged(written, 2))
        found.keep_damaged()
        found.close(remove=False)
    assert names(spool) == ["a.damaged-1", "a.damaged-2", "a.journal"]


def test_a_disk_that_does_not_take_the_damaged_parts_stops_the_journal_from_moving_past_them(
    spool: Path, written: bytes, disk: Disk
) -> None:
    found = of_dead(spool, damaged(written, 3))
    disk.fails_at, disk.stays_broken = 1, True
    with pytest.raises(OSError):
        found.advance(5)
    with pytest.raises(OSError):
        found.keep_damaged()
    disk.fails_at = None
    assert (found.position, names(spool)) == (0, ["a.journal"])
    found.advance(5)
    found.close(remove=True)
    assert names(spool) == ["a.damaged-1"]


def test_an_empty_file_of_a_process_that_died_as_it_began_is_removed(spool: Path) -> None:
    found = of_dead(spool, b"")
    assert (found.pending, entries(found), damages(found)) == (0, [], [])
    found.close(remove=True)
    assert names(spool) == []


def test_a_new_file_that_somebody_takes_for_a_dead_one_s_is_made_again(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = journal._try_lock
    thieves = iter([True])

    def late(descriptor: int) -> bool:
        if next(thieves, False):
            heir = adopted(spool)
            heir.close(remove=True)
        return lock(descriptor)

    monkeypatch.setattr(journal, "_try_lock", late)
    own = new(spool)
    own.append([b"x"])
    assert names(spool) == ["a.journal"]
    own.close(remove=False)
    assert entries(adopted(spool)) == [(1, b"x")]
