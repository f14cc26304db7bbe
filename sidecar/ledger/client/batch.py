"""One batch of ledger operations: gathered in a turn of the event loop, packed for ``batch.lua``, its reply read.
No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson

from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Event, Hold

HOLD, SETTLE, RELEASE, REPLAY = 1, 2, 3, 4
GRANTED = int(Code.GRANTED)
PARTS_MAX = 3000
"""Groups and singles that ``batch.lua`` takes in one call."""

VALUES_PACKED = 4000
"""Values of groups after which another argument begins: a script takes fewer than 8,000 from its stack at once."""

_pack = msgpack.Packer(use_bin_type=False, autoreset=True).pack  # cmsgpack does not know the bin type


class Group:
    """Operations on one metric of one account: what is settled and given back, and the holds asked for."""

    __slots__ = ("account", "holds", "late", "metric", "released", "settled")

    def __init__(self, account: str, metric: str) -> None:
        self.account = account
        self.metric = metric
        self.settled = 0
        self.released = 0
        self.late = 0
        self.holds: list[Hold] = []

    def without_holds(self) -> Group:
        """What it settles and gives back alone."""
        other = Group(self.account, self.metric)
        other.settled, other.released, other.late = self.settled, self.released, self.late
        return other


@dataclass(slots=True)
class Single:
    """An operation under an idempotency key, or a charge of a spool. Settles and replays have an event."""

    hold: Hold
    kind: int
    event: Event | None = None
    packed: bytes = b""
    """The event's JSON, once it was encoded."""


class Batch:
    """``epoch`` is the instance's when the first operation came in; ``asked`` the loop's time when the first hold
    did, 0 while there is none. ``refusal``: why its one account cannot take its settles, which are to be kept as
    refused; "" otherwise. ``left_out``: positions of the holds that it once had among ``singles``; None unless it is
    offered again without them. ``unpaid``: by account, how many requests were answered and cost nothing.
    ``packed_events``: the JSON of ``events`` without brackets, once they were encoded."""

    __slots__ = ("asked", "epoch", "events", "groups", "left_out", "number", "operations", "packed_events", "refusal",
                 "singles", "unpaid")  # fmt: skip

    def __init__(self, epoch: int, asked: float = 0.0) -> None:
        self.epoch = epoch
        self.asked = asked
        self.number = 0
        self.groups: dict[tuple[str, str], Group] = {}
        self.singles: list[Single] = []
        self.events: list[Event] = []
        self.operations = 0
        self.refusal = ""
        self.left_out: frozenset[int] | None = None
        self.unpaid: dict[str, int] = {}
        self.packed_events = b""

    def __repr__(self) -> str:
        return (
            f"<Batch {self.number} groups={len(self.groups)} singles={len(self.singles)} operations={self.operations}>"
        )

    def group(self, account: str, metric: str) -> Group:
        key = (account, metric)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(account, metric)
        self.operations += 1
        return group

    def add_hold(self, hold: Hold) -> None:
        if hold.key is None:
            self.group(hold.account, hold.metric).holds.append(hold)
        else:
            self.add_single(hold, HOLD)

    def add_settle(self, hold: Hold, event: Event) -> None:
        if hold.mark:
            self.add_single(hold, SETTLE, event)
        elif hold.record is not None:
            self.add_single(hold, REPLAY, event)
        else:
            group = self.group(hold.account, hold.metric)
            if hold.epoch == self.epoch:
                group.settled += hold.units
            else:
                group.late += hold.units
            self.events.append(event)

    def add_release(self, hold: Hold, unpaid: bool = False) -> None:
        account = hold.account
        if hold.mark:
            self.add_single(hold, RELEASE)
        elif hold.epoch == self.epoch:
            self.group(account, hold.metric).released += hold.units
        elif unpaid:
            self.operations += 1
        if unpaid:
            self.unpaid[account] = self.unpaid.get(account, 0) + 1

    def add_single(self, hold: Hold, kind: int, event: Event | None = None) -> None:
        """An operation under an idempotency key, or of a spool's record."""
        self.operations += 1
        self.singles.append(Single(hold, kind, event))

    def waiting(self) -> list[Hold]:
        """Holds that somebody still waits for."""
        holds = [hold for group in self.groups.values() for hold in group.holds if hold.callback is not None]
        holds += [s.hold for s in self.singles if s.kind == HOLD and s.hold.callback is not None]
        return holds

    def drop_holds(self) -> list[Hold]:
        """Takes the holds out, for a batch that was never sent; what remains are settles and releases."""
        dropped = []
        for group in self.groups.values():
            dropped += group.holds
            group.holds = []
        dropped += [s.hold for s in self.singles if s.kind == HOLD]
        self.singles = [s for s in self.singles if s.kind != HOLD]
        self.operations -= len(dropped)
        self.asked = 0.0
        return dropped

    def enter_epoch(self, epoch: int) -> None:
        """The instance registered again: shares of the older epoch were given back already, so its settles are late."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        # A single says the epoch of its hold.
        for group in self.groups.values():
            group.late += group.settled
            group.settled = group.released = 0

    def by_account(self) -> dict[str, Batch]:
        """The same operations, a batch for each account."""
        parts: dict[str, Batch] = {}

        def part(account: str) -> Batch:
            if account not in parts:
                parts[account] = Batch(self.epoch, self.asked)
            return parts[account]

        for key, group in self.groups.items():
            mine = part(group.account)
            mine.groups[key] = group
            mine.operations += 1 + len(group.holds)
        for single in self.singles:
            mine = part(single.hold.account)
            mine.singles.append(single)
            mine.operations += 1
        for event in self.events:
            part(event[0]).events.append(event)
        for account, count in self.unpaid.items():
            mine = part(account)
            mine.unpaid[account] = count
            mine.operations = mine.operations or 1
        return parts

    def without(self, account: str) -> tuple[Batch, Batch]:
        """The operations of all other accounts, and those of this one."""
        parts = self.by_account()
        mine = parts.pop(account)
        others = Batch(self.epoch, self.asked)
        for part in parts.values():
            others._absorb(part)
        return others, mine

    def settles(self) -> list[tuple[Event, list[Any] | None]]:
        """Every charge that it carries, with what ``refuse.lua`` keeps of its idempotency key."""
        of_singles = [(single.event, _refused_mark(single)) for single in self.singles if single.event is not None]
        return [*((event, None) for event in self.events), *of_singles]

    def split(self, operations_max: int) -> list[Batch]:
        """The same operations in batches of at most ``operations_max``. Settles of one account without idempotency keys
        stay together, since their units are one sum; they are one operation here, as they are to the script."""
        out: list[Batch] = []
        for account in self.by_account().values():
            for part in account._split_account(operations_max):
                if out and out[-1].operations + part.operations <= operations_max:
                    out[-1]._absorb(part)
                else:
                    out.append(part)
        return out

    def _split_account(self, operations_max: int) -> list[Batch]:
        if self.operations <= operations_max:
            return [self]
        out = [Batch(self.epoch, self.asked)]
        out[0].events = self.events
        out[0].groups = {key: group.without_holds() for key, group in self.groups.items()}
        out[0].operations = len(out[0].groups) or len(self.unpaid)
        out[0].unpaid = self.unpaid

        def place() -> Batch:
            if out[-1].operations >= operations_max:
                out.append(Batch(self.epoch, self.asked))
            return out[-1]

        for group in self.groups.values():
            for hold in group.holds:
                place().add_hold(hold)
        for single in self.singles:
            batch = place()
            batch.singles.append(single)
            batch.operations += 1
        return out

    def _absorb(self, other: Batch) -> None:
        self.groups.update(other.groups)
        self.singles += other.singles
        self.events += other.events
        self.unpaid |= other.unpaid
        self.operations += other.operations


def _refused_mark(single: Single) -> list[Any]:
    """record, digest, fingerprint, p, q (``lua/reapply.lua``)."""
    hold = single.hold
    key = hold.key
    record = hold.record.hex() if hold.record is not None else ""
    if key is None:
        return [record, "", "", 0, 0]
    p, q = (key.repeats_max, 0) if single.kind == REPLAY else (hold.epoch, hold.mark)
    return [record, key.digest.hex(), key.fingerprint.hex(), p, q]


def encode(
    batch: Batch, origin: str, settings: LinkSettings, versions: dict[str, int], account_key: Callable[[str], bytes],
    confirmed: int = 0, chain: bytes = b"",
) -> tuple[list[bytes], list[bytes], dict[str, int]]:  # fmt: skip
    """Keys of the accounts, the arguments of ``batch.lua``, and the number of each account in it.

    ``versions``: the account's version for which its view is known. ``account_key``: maps an account id to its two keys
    as bulk strings. ``confirmed``: number of the last batch that has a reply: a server that does not know it has lost
    data. ``chain``: of the entry before.
    """
    index: dict[str, int] = {}
    keys: list[bytes] = []
    metrics: dict[str, int] = {}
    parts: list[int] = []
    arguments: list[bytes] = [b""]
    for group in batch.groups.values():
        account, metric, holds = group.account, group.metric, group.holds
        at = index.get(account)
        if at is None:
            at = index[account] = len(keys) + 1
            keys.append(account_key(account))
        number = metrics.get(metric)
        if number is None:
            number = metrics[metric] = len(metrics) + 1
        parts += (at, versions.get(account, 0), number, group.settled, group.released, group.late)
        if not holds:
            parts.append(0)
        else:
            units = [hold.units for hold in holds]
            if units.count(units[0]) == len(units):
                parts += (len(units), units[0])
            else:
                parts.append(-len(units))
                parts += units
        if len(parts) >= VALUES_PACKED:
            arguments.append(_pack_numbers(parts))
            parts = []
    if parts:
        arguments.append(_pack_numbers(parts))
    singles = []
    for single in batch.singles:
        hold = single.hold
        at = index.get(hold.account)
        if at is None:
            at = index[hold.account] = len(keys) + 1
            keys.append(account_key(hold.account))
        singles.append((at, versions.get(hold.account, 0), hold.metric, hold.units, single.kind, *_key_parts(single)))
    unpaid: list[int] = []
    for account, count in batch.unpaid.items():
        at = index.get(account)
        if at is None:
            at = index[account] = len(keys) + 1
            keys.append(account_key(account))
        unpaid += (at, count)
    events = batch.packed_events = orjson.dumps(batch.events)[1:-1] if batch.events else b""
    arguments[0] = _pack_values((
        batch.epoch, batch.number, origin, events, settings.idempotency_ttl_ms, len(batch.groups), list(metrics),
        singles, settings.unpaid_interval_us, settings.unpaid_burst, unpaid, confirmed, chain,
    ))  # fmt: skip
    return keys, arguments, index


def _key_parts(single: Single) -> tuple[bytes, bytes, int, int, bytes, bytes]:
    """digest, fingerprint, p, q, event, record (``lua/batch.lua``)."""
    hold = single.hold
    key = hold.key
    event = single.packed = b"" if single.event is None else orjson.dumps(single.event)
    digest, fingerprint = (b"", b"") if key is None else (key.digest, key.fingerprint)
    if single.kind in (SETTLE, RELEASE):
        return digest, fingerprint, hold.epoch, hold.mark, event, b""
    repeats_max, refuses = (0, 0) if key is None else (key.repeats_max, int(key.refuse_conflicts))
    return digest, fingerprint, repeats_max, refuses, event, hold.record or b""


def appended(batch: Batch, singles: list[Any]) -> bytes:
    """The field ``e`` of the outbox entry that an encoded batch appended; b"[]" if it appended none. ``singles``: of
    its reply, which alone tells what was charged before and therefore is not in it."""
    if not batch.singles:
        return b"[" + batch.packed_events + b"]"
    events = [batch.packed_events] if batch.packed_events else []
    for single, answer in zip(batch.singles, singles, strict=True):
        if single.packed and (single.kind != REPLAY or answer[4] == GRANTED):
            events.append(single.packed)
    return b"[" + b",".join(events) + b"]"


def encode_refusal(batch: Batch, origin: str, confirmed: int = 0) -> bytes:
    """The argument of ``refuse.lua`` for the settles of a batch of one account."""
    settles = batch.settles()
    events = orjson.dumps([event for event, _ in settles])
    marks = orjson.dumps([mark for _, mark in settles])
    packed: bytes = _pack((batch.epoch, batch.number, origin, settles[0][0][0], batch.refusal, events, marks,
                          confirmed))  # fmt: skip
    return packed


def _pack_numbers(values: list[int]) -> bytes:
    try:
        packed = bytes(values)
    except ValueError:  # one is negative or above 255
        return _pack_values(values)
    # In msgpack a number below 128 is one byte, its own, and most here are.
    return packed if packed.isascii() else _pack_values(values)


def _pack_values(values: Sequence[Any]) -> bytes:
    """The values one after another: an array without its head."""
    count = len(values)
    packed: bytes = _pack(values)
    return packed[1 if count < 16 else 3 if count < 65_536 else 5 :]


def decode(reply: bytes) -> tuple[bool, int, list[Any], list[Any], list[int]]:
    """``(registered, now_us, holds, singles, stepped)`` of a reply. ``holds`` has for each group with holds its
    summary or False, then code, x and y of each hold. ``stepped``: the latest instant and the server's, µs, when the
    server's clock was set back by more than the ledger's holds; else empty.

    Raises:
        ValueError: not a reply of ``batch.lua``.
    """
    # A view in a summary is bytes, and everything else is numbers.
    registered, now_us, holds, singles, stepped = msgpack.unpackb(reply, raw=True)
    return bool(registered), int(now_us), holds, singles, stepped or []
