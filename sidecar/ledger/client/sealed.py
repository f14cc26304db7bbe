"""Sealed batches: what a numbered batch charges, kept as bytes, so that it can be offered to the ledger again.

A batch is sealed with its number. Offered again under it, the ledger does it once, whoever offers it: a link after a
lost reply, the same process after the server's data went back, another process out of the spool. A sealed batch charges
and ends holds, and takes none. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson

from sidecar.ledger.client.batch import HOLD, RELEASE, REPLAY, SETTLE, Batch
from sidecar.ledger.client.outcomes import Event, Hold, IdempotencyKey
from sidecar.ledger.proof.chain import beginning

_GROUP_VALUES = 7
"""Values of a group before the units of its holds (``lua/batch.lua``)."""


class SealedError(ValueError):
    """The bytes are not what was sealed."""


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """One numbered batch of an instance's home partition.

    Attributes:
        home_partition: whose instance key, clock and outbox it goes to.
        number: the batch's.
        keys: of each account, two bulk strings in one, as ``encode`` answers them.
        arguments: of ``batch.lua``, as ``encode`` answers them.
        settles: how many charges it has.
        at_ms: when it was sealed, Unix milliseconds.
        refusal: why its one account cannot take its settles; "" if that is not known.
    """

    home_partition: int
    number: int
    keys: Sequence[bytes]
    arguments: Sequence[bytes]
    settles: int
    at_ms: int = 0
    refusal: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes, about. Keys are shared with the client's table of them."""
        return 200 + 8 * len(self.keys) + sum(map(len, self.arguments))

    def to_bytes(self) -> bytes:
        """For a spool."""
        packed: bytes = msgpack.packb((
            1, self.home_partition, self.number, self.at_ms, self.settles, self.refusal, list(self.keys),
            list(self.arguments),
        ))  # fmt: skip
        return packed

    @classmethod
    def from_bytes(cls, packed: bytes) -> SealedBatch:
        """Raises :class:`SealedError`."""
        try:
            form, home, number, at_ms, settles, refusal, keys, arguments = msgpack.unpackb(packed)
            if form != 1:
                raise SealedError(f"a sealed batch of form {form}: a later release wrote it")
            sealed = cls(int(home), int(number), keys, arguments, int(settles), int(at_ms), str(refusal))
            if not all(isinstance(each, bytes) for each in (*keys, *arguments)):
                raise SealedError("keys and arguments of a sealed batch should be bytes")
        except SealedError:
            raise
        except (ValueError, TypeError) as error:
            raise SealedError(f"not a sealed batch: {error}") from None
        return sealed


def unseal(sealed: SealedBatch) -> Batch:
    """The batch without its holds: charges, and what it gives back. Its events get the ids that they had.

    Raises:
        SealedError: it cannot be read.
    """
    try:
        batch = _unseal(sealed)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SealedError(f"not a sealed batch: {error}"[:300]) from None
    batch.number = sealed.number
    batch.refusal = sealed.refusal
    return batch


def origin_of(sealed: SealedBatch) -> str:
    """``<instance>.<home partition>``, as its events have it. Raises :class:`SealedError`."""
    try:
        origin: bytes = _head(sealed)[2]
        return origin.decode()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SealedError(f"not a sealed batch: {error}"[:300]) from None


def chain_of(sealed: SealedBatch) -> bytes:
    """The chain value that it was sent with; b"" if it was never sent, or without one. Raises :class:`SealedError`."""
    try:
        head = _head(sealed)
        return bytes(head[12]) if len(head) > 12 else b""
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SealedError(f"not a sealed batch: {error}"[:300]) from None


def chain_before(lost: Sequence[SealedBatch], now: bytes, key: bytes) -> bytes:
    """The chain value from which batches go on that are sent again: the first one's, or ``now`` if none has one. b"":
    they begin a chain. Raises :class:`SealedError`."""
    for sealed in lost:
        chain = chain_of(sealed)
        if chain:
            return b"" if chain == beginning(key, origin_of(sealed), sealed.number) else chain
    return now


def accounts_of(sealed: SealedBatch) -> list[str]:
    """The accounts that it names. Raises :class:`SealedError`."""
    try:
        return [_account(key) for key in sealed.keys]
    except (ValueError, LookupError) as error:
        raise SealedError(f"not a sealed batch: {error}"[:300]) from None


def events_of(sealed: SealedBatch) -> list[Event]:
    """Its charges. Raises :class:`SealedError`."""
    return [event for event, _ in unseal(sealed).settles()]


def _head(sealed: SealedBatch) -> list[Any]:
    return _values(sealed.arguments[0])


def _values(packed: bytes) -> list[Any]:
    """msgpack values one after another."""
    reader = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=0)
    reader.feed(packed)
    return list(reader)


def _account(key: bytes) -> str:
    """Out of the bulk strings of its two keys; the second is ``…{pNN}:account:<id>``, and an id may have any bytes."""
    length, rest = key[1:].split(b"\r\n", 1)
    second = rest[int(length) + len(b"\r\n") :]
    return second[second.index(b"\r\n") + 2 : -2].split(b"}:account:", 1)[1].decode()


def _unseal(sealed: SealedBatch) -> Batch:
    epoch, _number, _origin, events, _ttl, n_groups, metrics, singles = _head(sealed)[:8]
    accounts = [_account(key) for key in sealed.keys]
    batch = Batch(int(epoch))
    values = [value for argument in sealed.arguments[1:] for value in _values(argument)]
    at = 0
    for _ in range(n_groups):
        a, _version, m, settled, released, late, n = values[at : at + _GROUP_VALUES]
        at += _GROUP_VALUES + (1 if n > 0 else -n)
        if settled or released or late:
            group = batch.group(accounts[a - 1], metrics[m - 1].decode())
            group.settled, group.released, group.late = settled, released, late
    if at != len(values):
        raise SealedError("groups whose values are more or fewer than they should be")
    batch.events = [_event(each) for each in orjson.loads(b"[" + events + b"]")]
    batch.left_out = frozenset(position for position, single in enumerate(singles) if single[4] == HOLD)
    for a, _version, metric, units, kind, digest, fingerprint, p, q, event, record in singles:
        if kind == HOLD:
            continue
        key = IdempotencyKey(digest, fingerprint, p if kind == REPLAY else 0) if digest else None
        hold = Hold(accounts[a - 1], metric.decode(), units, key, None)
        if kind in (SETTLE, RELEASE):
            hold.epoch, hold.mark = p, q
        else:
            hold.record = record
        batch.add_single(hold, kind, _event(orjson.loads(event)) if event else None)
    return batch


def _event(values: list[Any]) -> Event:
    account, metric, units, route, method, status, response_ms, interaction_id, traceparent = values
    return account, metric, units, route, method, status, response_ms, interaction_id, traceparent
