"""What the bytes of a spool's journal mean. No I/O of its own.

A file is a head and records. All integers are big-endian.

* The **head** has two equal slots, at byte 0 and in the next page of 4096 bytes: magic, format, a counter, a random id
  of 16 bytes, the durable position (the sequence up to which all is done, and the byte behind it), the journal's name,
  a BLAKE2b of 16 bytes over all. A slot is overwritten in place, one after the other, so one of them is always whole.
  The higher counter counts.
* A **record** has magic, length, sequence, a check of these, a check of all, the payload.

The checks are BLAKE2b of 8 bytes under the id as key, not CRC-32: reading goes on behind damage at the next thing that
looks like a record. A payload has texts of callers, who could put a record with a right CRC there. Nobody can make a
right check without the id. It costs about 2 µs a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

HEAD_BYTES: Final = 8192
SLOT_OFFSETS: Final = (0, 4096)
PAYLOAD_BYTES_MAX: Final = 4_194_304
"""Beyond it a length is damage, and nothing is allocated. The longest charge has a few KiB."""
RECORD_HEAD_BYTES: Final = 32
NAME_BYTES_MAX: Final = 200
_FORMAT: Final = 1
_SLOT_MAGIC: Final = b"qsspool\n"
_SLOT: Final = struct.Struct(f">8sHHQ16sQQ{NAME_BYTES_MAX}s")
_SLOT_CHECK_BYTES: Final = 16
SLOT_BYTES: Final = _SLOT.size + _SLOT_CHECK_BYTES
_RECORD_MAGIC: Final = b"\xc5qsr"
_RECORD: Final = struct.Struct(">4sIQ")
_CHECK_BYTES: Final = 8
WINDOW_BYTES: Final = 131_072
"""Read at once where records are shorter."""

ReadAt = Callable[[int, int], bytes]
"""Bytes of a file from an offset on; fewer only at its end. Raises OSError."""


class FormatError(Exception):
    """A head cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """A slot. ``offset``: where the first record behind ``position`` is."""

    name: str
    id: bytes
    counter: int
    position: int
    offset: int

    def encode(self) -> bytes:
        name = self.name.encode()
        body = _SLOT.pack(_SLOT_MAGIC, _FORMAT, len(name), self.counter, self.id, self.position, self.offset, name)
        return body + blake2b(body, digest_size=_SLOT_CHECK_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is as it was written. ``offset``, ``end``: its first byte and the one behind its last."""

    sequence: int
    payload: bytes
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record, or a place where records are missing (``length`` 0)."""

    offset: int
    length: int
    reason: str


def encode_head(head: Head) -> bytes:
    """The first HEAD_BYTES of a new file."""
    data = bytearray(HEAD_BYTES)
    slot = head.encode()
    for at in SLOT_OFFSETS:
        data[at : at + len(slot)] = slot
    return bytes(data)


def decode_head(data: bytes) -> Head:
    """The head that counts, out of the first HEAD_BYTES of a file.

    Raises:
        FormatError: neither slot is whole, or a later release wrote them.
    """
    found: list[Head] = []
    later = 0
    for at in SLOT_OFFSETS:
        slot = data[at : at + SLOT_BYTES]
        body, check = slot[: _SLOT.size], slot[_SLOT.size :]
        if len(slot) < SLOT_BYTES or blake2b(body, digest_size=_SLOT_CHECK_BYTES).digest() != check:
            continue
        magic, number, length, counter, identity, position, offset, name = _SLOT.unpack(body)
        if magic != _SLOT_MAGIC:
            continue
        if number != _FORMAT:
            later = number
        else:
            found.append(Head(name[:length].decode(errors="replace"), identity, counter, position, offset))
    if found:
        return max(found, key=lambda head: head.counter)
    if later:
        raise FormatError(f"it has format {later}, and this release reads format {_FORMAT}")
    raise FormatError("its head is damaged, or it is no journal of a spool")


def _check(key: bytes, *parts: bytes) -> bytes:
    state = blake2b(digest_size=_CHECK_BYTES, key=key)
    for part in parts:
        state.update(part)
    return state.digest()


def encode_record(key: bytes, sequence: int, payload: bytes) -> bytes:
    """``key``: the journal's id."""
    start = _RECORD.pack(_RECORD_MAGIC, len(payload), sequence)
    return b"".join((start, _check(key, start), _check(key, start, payload), payload))


class _Window:
    """The part of a file that is looked at, so that not every record costs a call of the system."""

    def __init__(self, read_at: ReadAt, end: int) -> None:
        self._read_at = read_at
        self._end = end
        self._start = 0
        self._data = b""

    def at(self, offset: int, length: int) -> bytes:
        """Fewer bytes than ``length`` only at the end."""
        length = min(length, self._end - offset)
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            self._data = self._read_at(offset, min(max(length, WINDOW_BYTES), self._end - offset))
            self._start, begin = offset, 0
        return self._data[begin : begin + length]


def read_records(read_at: ReadAt, key: bytes, offset: int, end: int, position: int) -> Iterator[Record | Damage]:
    """Records behind ``position`` from ``offset`` on, in order, and what lies between them that is none.

    A torn record at the end is no damage: nobody was told that it is on disk. Zeros there are, since a file system puts
    them in place of what was written. Reads at most one record and a window at once. Raises OSError.
    """
    window = _Window(read_at, end)
    expected = position + 1
    while offset < end:
        found = _record_at(window, key, offset)
        if isinstance(found, Record):
            if found.sequence >= expected:
                if found.sequence > expected:
                    yield Damage(offset, 0, f"{_numbers(expected, found.sequence - 1)} missing")
                yield found
                expected = found.sequence + 1
            elif found.sequence > position:
                yield Damage(offset, found.end - offset, f"sequence {found.sequence} again")
            offset = found.end
            continue
        if _is_torn(window, key, offset, end, expected):
            return
        following = _next_record(window, key, offset + 1, end)
        if following is None:
            yield Damage(offset, end - offset, f"{found}, up to the end, from sequence {expected} on")
            return
        if following.sequence > position:  # else all that was here is done
            lost = _numbers(expected, following.sequence - 1) if following.sequence > expected else "nothing is"
            yield Damage(offset, following.offset - offset, f"{found}; {lost} lost")
            expected = max(expected, following.sequence)
        offset = following.offset


def _numbers(first: int, last: int) -> str:
    return f"sequence {first} is" if first == last else f"sequences {first} to {last} are"


def _record_at(window: _Window, key: bytes, offset: int) -> Record | str:
    """The record, or why there is none."""
    head = window.at(offset, RECORD_HEAD_BYTES)
    if not any(head):
        return "zeros"
    if len(head) < RECORD_HEAD_BYTES or not head.startswith(_RECORD_MAGIC):
        return "no record begins here"
    start = head[: _RECORD.size]
    length, sequence = _head_fields(start)
    if length > PAYLOAD_BYTES_MAX:
        return "a record's length is out of bounds"
    if _check(key, start) != head[_RECORD.size : _RECORD.size + _CHECK_BYTES]:
        return "the check of a record's head is wrong"
    payload = window.at(offset + RECORD_HEAD_BYTES, length)
    if len(payload) < length:
        return "a record is cut off"
    if _check(key, start, payload) != head[_RECORD.size + _CHECK_BYTES :]:
        return "a payload's check is wrong"
    return Record(sequence, payload, offset, offset + RECORD_HEAD_BYTES + length)


def _head_fields(start: bytes) -> tuple[int, int]:
    _, length, sequence = _RECORD.unpack(start)
    return length, sequence


def _is_torn(window: _Window, key: bytes, offset: int, end: int, expected: int) -> bool:
    """Whether what is left is the beginning of the next record, cut off by the end of the file."""
    left = window.at(offset, RECORD_HEAD_BYTES)
    known = len(_RECORD_MAGIC)
    if left[:known] != _RECORD_MAGIC[: len(left)]:
        return False
    if len(left) < _RECORD.size:
        return True
    start = left[: _RECORD.size]
    length, sequence = _head_fields(start)
    if sequence != expected or length > PAYLOAD_BYTES_MAX:
        return False
    got = left[_RECORD.size : _RECORD.size + _CHECK_BYTES]
    return _check(key, start).startswith(got) and offset + RECORD_HEAD_BYTES + length > end


def _next_record(window: _Window, key: bytes, offset: int, end: int) -> Record | None:
    """The first whole record from ``offset`` on."""
    while offset + RECORD_HEAD_BYTES <= end:
        chunk = window.at(offset, WINDOW_BYTES)
        at = chunk.find(_RECORD_MAGIC)
        while at >= 0:
            found = _record_at(window, key, offset + at)
            if isinstance(found, Record):
                return found
            at = chunk.find(_RECORD_MAGIC, at + 1)
        offset += max(1, len(chunk) - len(_RECORD_MAGIC) + 1)
    return None
