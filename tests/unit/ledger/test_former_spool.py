"""Spools of release 0.2: what a line is, and what damage costs."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest

from sidecar.ledger.client.outcomes import Event
from sidecar.ledger.spool.spool_file import Damage, Record, decode_record, encode_record, read_records

EVENT: Event = ("tpp", "api_calls", 1, "/accounts", "GET", 200, 1.5, None, None)
RECORD = Record("spool:gw:1", "tpp", "api_calls", 1, EVENT)


def test_a_record_is_read_as_it_was_written() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


@pytest.mark.parametrize("at_byte", range(0, len(encode_record(RECORD)), 7))
def test_a_line_with_one_bit_changed_is_no_record(at_byte: int) -> None:
    line = bytearray(encode_record(RECORD))
    line[at_byte] ^= 1
    with pytest.raises(ValueError):
        decode_record(bytes(line))


@pytest.mark.parametrize("body", [
    b"7", b"[]", b"null", b'["a","b","c","1",[]]', b'["a","b","c",1,[1,2]]', b'["a","b","c",-1,[1,2,3,4,5,6,7,8,9]]',
])  # fmt: skip
def test_a_line_that_is_no_charge_is_no_record_although_its_checksum_is_right(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_record(b"%08x %b\n" % (crc32(body), body))


def test_damage_costs_its_own_line_and_a_torn_end_is_told_from_it(tmp_path: Path) -> None:
    file = tmp_path / "spool-a.log"
    line = encode_record(RECORD)
    write_as_dead(file, line + b"rubbish\n" + line + b"x" * 200_000 + b"\n" + line + line[:20])
    found = [item if isinstance(item, Record) else item.torn for item in read_records(file)]
    assert [item for item in found if item is not False] == [RECORD, RECORD, RECORD, True]
    assert isinstance(list(read_records(file))[-1], Damage)


def write_as_dead(path: Path, data: bytes) -> None:
    """A file as a process left it: its owner's alone."""
    path.touch(0o600)
    path.write_bytes(data)
