"""To whom epochs belong: gateway processes that live, and those that departed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.keys import PARTITIONS_MAX, Keys
from sidecar.ledger.verification.pace import Pace
from sidecar.ledger.verification.verify_report import Check, Difference
from sidecar.valkey.calls import Call, call_each, raise_first
from sidecar.valkey.topology import Client

_DEPARTED: Final = re.compile(rb"departed:([0-9]{1,16})")


@dataclass(frozen=True, slots=True)
class Owner:
    """``units``: held in all. ``seq``: the last batch; -1 of one that departed. ``place``: for people."""

    units: int
    seq: int
    place: str


@dataclass(slots=True)
class Owners:
    """``epochs_made``: by partition, how many epochs it has given out."""

    by_epoch: dict[int, Owner] = field(default_factory=dict)
    epochs_made: dict[int, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)


async def read_owners(client: Client, keys: Keys, recorded: Mapping[int, set[str]], pace: Pace) -> Owners:
    """``recorded``: names of gateway processes by partition that have a record, beside those with a heartbeat.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    await pace.wait()
    partitions = range(keys.partitions)
    calls = [Call(keys.alive(p), ("ZRANGE", keys.alive(p), "0", "-1")) for p in partitions]
    calls += [Call(keys.meta(p), ("HGETALL", keys.meta(p))) for p in partitions]
    replies = await call_each(client, calls)
    found = Owners()
    living: dict[int, set[str]] = defaultdict(set)
    for partition in partitions:
        alive, meta = replies[partition], replies[keys.partitions + partition]
        if isinstance(alive, Exception) or isinstance(meta, Exception):
            raise_first([alive, meta])
        living[partition] = {member.decode("utf-8", "backslashreplace") for member in alive}
        _departed(found, partition, _pairs(meta))
    for partition in partitions:
        names = sorted(living[partition] | recorded.get(partition, set()))
        if names:
            await _read_instances(client, keys, partition, names, living[partition], found)
    return found


def _departed(found: Owners, partition: int, meta: Mapping[bytes, bytes]) -> None:
    place = f"partition {partition}"
    try:
        found.epochs_made[partition] = int(meta.get(b"epochs", b"0"))
        for name, units in meta.items():
            if match := _DEPARTED.fullmatch(name):
                _own(found, int(match[1]), Owner(int(units), -1, f"{place}, departed"))
    except ValueError as error:
        found.differences.append(Difference(Check.READABLE, place, "its meta cannot be read", "numbers", str(error)))


def _own(found: Owners, epoch: int, owner: Owner) -> None:
    other = found.by_epoch.get(epoch)
    if other is not None:
        found.differences.append(
            Difference(Check.INSTANCES, f"epoch {epoch}", "it belongs to two", other.place, owner.place)
        )
    found.by_epoch[epoch] = owner


async def _read_instances(
    client: Client, keys: Keys, partition: int, names: Sequence[str], living: set[str], found: Owners
) -> None:
    records = await call_each(
        client, [Call(keys.instance(partition, n), ("GET", keys.instance(partition, n))) for n in names]
    )
    for name, packed in zip(names, records, strict=True):
        place = f"process {name} of partition {partition}"
        if packed is None:
            if name in living:
                found.differences.append(
                    Difference(Check.INSTANCES, place, "it has a heartbeat and no record", "both", "a heartbeat")
                )
            continue
        try:
            epoch, seq, held = _record(packed)
        except (ValueError, msgpack.UnpackException) as error:
            found.differences.append(
                Difference(Check.READABLE, place, "its record cannot be read", "a record", str(error)[:200])
            )
            continue
        if epoch == 0:
            if held or name in living:
                found.differences.append(
                    Difference(
                        Check.INSTANCES, place, "it departed, and holds units or has a heartbeat", "0", str(held)
                    )
                )
            continue
        if name not in living:
            found.differences.append(
                Difference(
                    Check.INSTANCES, place, "it has a record and no heartbeat: nobody reaps it", "both", "a record"
                )
            )
        if epoch % PARTITIONS_MAX != partition or epoch // PARTITIONS_MAX > found.epochs_made.get(partition, 0):
            made = f"one of the {found.epochs_made.get(partition, 0)} epochs of the partition"
            found.differences.append(Difference(Check.INSTANCES, place, "its epoch was never given", made, str(epoch)))
        _own(found, epoch, Owner(held, seq, place))


def _record(packed: Any) -> tuple[int, int, int]:
    if isinstance(packed, ResponseError):
        raise ValueError(reason_of(packed))
    raise_first([packed])
    reader = msgpack.Unpacker(raw=True, max_buffer_size=max(1, len(packed)))
    reader.feed(packed)
    values = [reader.unpack() for _ in range(3)]
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values} where epoch, number and held units should be")
    return values[0], values[1], values[2]


def _pairs(reply: Any) -> dict[bytes, bytes]:
    """HGETALL, in each of the shapes that the library has for its reply."""
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
