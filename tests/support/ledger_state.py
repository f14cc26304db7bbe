"""Reads what the scripts have stored, and refuses what they must never store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from tests.reference.messages import AccountState, Entry, InstanceState, MetricState

NO_PERIOD_END_MS = 2**53 - 1


def pack(value: Any) -> bytes:
    """As the Lua reads it: cmsgpack does not know the bin type."""
    return bytes(msgpack.packb(value, use_bin_type=False))


def unpack(raw: bytes) -> Any:
    """Refuses what the scripts must never store or answer: a number that is no integer below 2^53."""
    value = msgpack.unpackb(raw, raw=False, strict_map_key=False)
    for number in _numbers(value):
        assert isinstance(number, int), f"{number!r} is no integer"
        assert abs(number) < 2**53, f"{number} is not below 2^53"
    return value


def _numbers(value: Any) -> Iterable[int | float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def integer(text: bytes) -> int:
    """A number that Valkey keeps as text; 1e+15 is none."""
    assert re.fullmatch(rb"-?[0-9]+", text), f"{text!r} is no integer"
    return int(text)


def _as_map(value: Any) -> Mapping[str, Any]:
    """Of a map: Lua cannot tell an empty one from an empty array."""
    return value or {}


def account_state(fields: dict[bytes, bytes]) -> AccountState:
    head = 6
    state: list[Any] = [0, 0, NO_PERIOD_END_MS, 0, 0, 0]
    if b"state" in fields:
        state = unpack(fields[b"state"])
    policy: tuple[Any, ...] | None = None
    if b"policy" in fields:
        policy = tuple(None if value is False else value for value in unpack(fields[b"policy"]))
    live, gone = unpack(fields[b"prices"]) if b"prices" in fields else ({}, {})
    metrics: dict[str, MetricState] = {}
    for at in range(head, len(state), 7):
        name, settled, held, *_piece = state[at : at + 7]
        metrics[name] = MetricState(settled, held)
    closed: dict[tuple[int, str], tuple[int, int]] = {}
    for field, value in fields.items():
        if field.startswith(b"closed:"):
            _, start, metric = field.split(b":", 2)
            units, cost = value.split(b" ")
            closed[integer(start), metric.decode()] = (integer(units), integer(cost))
    return AccountState(
        version=policy[0] if policy else 0,
        unsettled=state[0],
        start_ms=state[1],
        end_ms=state[2],
        tat_us=state[3],
        day=state[4],
        day_count=state[5],
        metrics={name: metric for name, metric in metrics.items() if metric != MetricState(0, 0)},
        live=_as_map(live),
        gone=_as_map(gone),
        periods=tuple(unpack(fields[b"periods"])) if b"periods" in fields else (),
        closed=closed,
        policy=policy,
        digits=integer(fields[b"digits"]) if b"digits" in fields else None,
        info=fields[b"info"].decode() if b"info" in fields else None,
    )


def instance_state(
    fields: dict[bytes, bytes], beat: float | None, ttl_ms: int, names: dict[bytes, str]
) -> InstanceState:
    shares = {}
    for field, units in fields.items():
        key, cut, metric = field.partition(b"\0")
        if cut:
            shares[names[key], metric.decode()] = integer(units)
    return InstanceState(
        epoch=integer(fields.get(b"e", b"0")),
        seq=integer(fields.get(b"q", b"0")),
        shares=shares,
        heartbeat_ms=None if beat is None else int(beat),
        expires=ttl_ms >= 0,
    )


def hour_units(hour: int, fields: dict[bytes, bytes], names: Mapping[bytes, str]) -> dict[tuple[int, str, str], int]:
    """What was settled in an hour, by account and metric."""
    found = {}
    for field, units in fields.items():
        key, cut, metric = field.partition(b"\0")
        if not cut:
            assert field == b"table"
            continue
        assert integer(units) > 0, f"{field!r} of hour {hour} has {units!r} units"
        found[hour, names[key], metric.decode()] = integer(units)
    return found


def entry_of(fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        fields[b"o"].decode(),
        integer(fields[b"q"]),
        integer(fields[b"t"]),
        tuple(tuple(event) for event in json.loads(fields[b"e"])),
    )
