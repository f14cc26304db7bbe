"""What the partitions say of themselves."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.ledger_format import IMPORTING, FormatError, PartitionFormat, nothing_there, partition_format
from sidecar.ledger.verification.verify_report import Check, Findings
from sidecar.valkey.calls import Call, call_each, raise_first, script_call
from sidecar.valkey.topology import Client

CLOCK_AHEAD_US: Final = 5_000_000
"""As in lua/lib/clock.lua: within it the ledger's clock stands until the server's has come up."""

_GENERATION = re.compile(r"[0-9a-z]{1,64}:[0-9]{1,15}")

_READ: Final = b"""
-- KEYS [1] clock [2] meta hash
-- reply {clock, format, partitions, generation, server's time in microseconds}
local time = redis.call('TIME')
local meta = redis.call('HMGET', KEYS[2], 'format', 'partitions', 'generation')
return {redis.call('GET', KEYS[1]), meta[1], meta[2], meta[3], time[1] * 1000000 + time[2]}
"""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The earliest of the servers' clocks, in ms."""

    now_ms: int


async def check_partitions(client: Client, keys: Keys, findings: Findings) -> Clocks:
    """Names what is wrong with a partition.

    Raises:
        FormatError: there is no ledger, or it is another release's, or has another number of partitions.
        RedisError, OSError: Valkey cannot be reached.
    """
    replies = await call_each(
        client, [script_call(_READ, [keys.clock(p), keys.meta(p)]) for p in range(keys.partitions)]
    )
    raise_first(replies)
    missing = [partition for partition, reply in enumerate(replies) if reply[1] is None]
    if len(missing) == keys.partitions:
        first = await call_each(
            client, [Call(keys.first_format(0, "accounts"), ("TYPE", keys.first_format(0, "accounts")))]
        )
        if first[0] == b"zset":
            PartitionFormat(1, 0, "", False).check(keys)
        raise FormatError(nothing_there(keys, missing).replace(", and ledger.expect is existing", ""))
    said = Counter((reply[1], reply[2]) for reply in replies if reply[1] is not None)
    for format_, partitions in said:
        if len(said) == 1 or format_ == IMPORTING.encode():
            one = partition_format((format_, partitions, b"", 0))
            assert one is not None
            one.check(keys)
    generations: Counter[str] = Counter()
    for partition, reply in enumerate(replies):
        _check_partition(partition, keys, reply, findings, generations)
    if len(generations) > 1:
        findings.note(f"partitions have {len(generations)} generations: some of them were made anew")
    return Clocks(min(int(reply[4]) for reply in replies) // 1000)


def _check_partition(partition: int, keys: Keys, reply: Any, findings: Findings, generations: Counter[str]) -> None:
    packed, format_, partitions, generation, server_us = reply
    place = f"partition {partition}"
    if format_ is None:
        findings.add(Check.PARTITIONS, place, "it has no data", f"format {FORMAT}", "nothing")
        return
    if format_ != b"%d" % FORMAT or partitions != b"%d" % keys.partitions:
        expected = f"format {FORMAT}, {keys.partitions} partitions"
        found = f"format {format_.decode()}, {(partitions or b'no').decode()} partitions"
        findings.add(Check.PARTITIONS, place, "its meta is that of another ledger", expected, found)
    text = (generation or b"").decode("utf-8", "replace")
    generations[text] += 1
    if not _GENERATION.fullmatch(text):
        findings.add(Check.PARTITIONS, place, "its generation cannot be read", "<random>:<count>", repr(text))
    try:
        reader = msgpack.Unpacker(raw=True)
        reader.feed(packed or b"")
        clock_format, latest_us, *stepped = list(reader)
        if not all(type(value) is int for value in (clock_format, latest_us, *stepped)) or len(stepped) not in (0, 2):
            raise ValueError
    except (ValueError, msgpack.UnpackException):
        findings.add(
            Check.PARTITIONS, place, "its clock cannot be read", "format and instants", repr((packed or b"")[:40])
        )
        return
    if clock_format != FORMAT:
        findings.add(Check.PARTITIONS, place, "its clock is of another format", FORMAT, clock_format)
    if latest_us - server_us > CLOCK_AHEAD_US:
        what = "its clock is ahead of the server's: that was set back"
        findings.add(
            Check.PARTITIONS,
            place,
            what,
            f"at most {CLOCK_AHEAD_US // 1_000_000} s",
            f"{(latest_us - server_us) / 1e6:.3f} s",
        )
    if stepped:
        findings.note(f"the clock of a server was set back: {(stepped[0] - stepped[1]) / 1e6:.3f} s in {place}")
