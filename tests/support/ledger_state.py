"""Reads what the scripts have stored, and refuses what they must never store."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from tests.reference.messages import (
    AccountState,
    Entry,
    HomeState,
    InstanceState,
    Mark,
    MetricState,
    SubscriptionState,
)

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


HEAD = 14
SUBSCRIPTION, COUNTER, SHARE = 3, 11, 3
MARK_LENGTH = 17


def _chunks(values: list[Any], size: int) -> list[list[Any]]:
    assert len(values) % size == 0
    return [values[at : at + size] for at in range(0, len(values), size)]


def state_values(raw: bytes) -> list[Any]:
    """The values of a state in one row: 7 of the policy, K, 4 of the limits, how many subscriptions and counters; then
    subscriptions, counters (8 that seldom change, N, H, units of the hour) and shares."""
    length = int.from_bytes(raw[:3], "big")
    front, hot = _values(raw[3 : 3 + length]), _values(raw[3 + length :])
    n_subscriptions, n_counters = front[8:10]
    slow_at = 10 + SUBSCRIPTION * n_subscriptions
    assert len(front) == slow_at + 8 * n_counters
    slow, counted = _chunks(front[slow_at:], 8), _chunks(hot[4 : 4 + 3 * n_counters], 3)
    counters = [value for row, numbers in zip(slow, counted, strict=True) for value in (*row, *numbers)]
    return [
        *front[:8],
        *hot[:4],
        n_subscriptions,
        n_counters,
        *front[10:slow_at],
        *counters,
        *hot[4 + 3 * n_counters :],
    ]


def _values(raw: bytes) -> list[Any]:
    reader = msgpack.Unpacker(raw=False)
    reader.feed(raw)
    values = list(reader)
    assert reader.tell() == len(raw), "something follows the last value"
    for number in _numbers(values):
        assert isinstance(number, int), f"{number!r} is no integer"
        assert abs(number) < 2**53, f"{number} is not below 2^53"
    return values


def ends_of(stored: list[int]) -> tuple[int, ...]:
    """First end, unit, steps in units."""
    ends = stored[:1]
    for step in stored[2:]:
        ends.append(ends[-1] + step * stored[1])
    return tuple(ends)


def account_state(packed: bytes | None, fields: dict[bytes, bytes], scopes: Mapping[bytes, str]) -> AccountState:
    """``scopes``: the names of idempotency keys by digest."""
    state: list[Any] = [0, 0, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, "", 0, NO_PERIOD_END_MS]
    if packed is not None:
        state = state_values(packed)
    version, *policy = state[:7]
    unsettled, tat_us, unpaid_tat_us, day, day_count, n_subscriptions, n_counters = state[7:HEAD]
    first = HEAD + SUBSCRIPTION * n_subscriptions
    behind = first + COUNTER * n_counters
    counters = _chunks(state[first:behind], COUNTER)
    shares = _chunks(state[behind:], SHARE)
    prices: list[Any] = unpack(fields[b"prices"]) if b"prices" in fields else []
    periods: list[Any] = unpack(fields[b"periods"]) if b"periods" in fields else []
    subscriptions = []
    names = []
    for at, (name, start_ms, end_ms) in enumerate(_chunks(state[HEAD:first], SUBSCRIPTION)):
        names.append(name)
        metrics = {}
        for number, metric, adjusted, *_piece_and_hour, settled, held, _of_hour in counters:
            assert adjusted == 0
            if number == at + 1:
                assert metric not in metrics, f"{metric} is counted twice"
                metrics[metric] = MetricState(settled, held)
        live, gone = (_as_map(prices[2 * at]), _as_map(prices[2 * at + 1])) if prices else ({}, {})
        subscriptions.append(
            SubscriptionState(
                name,
                start_ms,
                end_ms,
                {metric: of for metric, of in metrics.items() if of != MetricState(0, 0)},
                live,
                gone,
                ends_of(periods[at]) if periods else (),
            )
        )
    assert len(set(names)) == len(names), f"subscriptions {names}"
    held = {}
    for epoch, counter, units in shares:
        number, metric, *_ = counters[counter - 1]
        assert (epoch, names[number - 1], metric) not in held, "an epoch has two shares of a counter"
        assert units > 0, "an empty share"
        held[epoch, names[number - 1], metric] = units
    policy = [None if value is False else value for value in policy]
    return AccountState(
        version=version,
        unsettled=unsettled,
        tat_us=tat_us,
        day=day,
        day_count=day_count,
        subscriptions=tuple(subscriptions),
        shares=held,
        closed=closed_records(fields),
        hours=hour_units(fields, counters),
        marks={
            scopes.get(field[1:], field.hex()): mark_of(packed)
            for field, packed in fields.items()
            if field.startswith(b"i") and len(field) == MARK_LENGTH
        },
        policy=tuple(policy) if version else None,
        digits=integer(fields[b"digits"]) if b"digits" in fields else None,
        view=fields[b"view"].decode() if b"view" in fields else None,
        about=fields[b"about"].decode() if b"about" in fields else None,
        fence=integer(fields[b"fence"]) if b"fence" in fields else None,
        unpaid_tat_us=unpaid_tat_us,
    )


def fingerprint(body: str) -> bytes:
    """16 bytes that tell what was sent: the text itself."""
    return body.encode().ljust(16, b"\xf0")


def mark_of(packed: bytes) -> Mark:
    """An idempotency key (lua/lib/marks.lua)."""
    reader = msgpack.Unpacker(raw=True)
    reader.feed(packed)
    until_ms, *rest = list(reader)
    assert packed[0] == 0xCF, "not an instant in ms"
    if not rest:
        return Mark(until_ms)
    epoch, number, sent = rest
    assert all(isinstance(each, int) for each in (until_ms, epoch, number))
    assert len(sent) == 16
    body = sent.rstrip(b"\xf0").decode()
    return Mark(until_ms, body, epoch, token=number if epoch else 0, repeats=0 if epoch else number)


def closed_records(fields: Mapping[bytes, bytes]) -> dict[tuple[int, str, str], tuple[int, int]]:
    """(start, subscription, metric) to units and cost of the periods that are over."""
    closed: dict[tuple[int, str, str], tuple[int, int]] = {}
    for start, name, metric, units, cost in _chunks(unpack(fields.get(b"closed", b"\x90")), 5):
        before = closed.get((start, name, metric), (0, 0))
        closed[start, name, metric] = (units + before[0], cost + before[1])
    return closed


def hour_units(fields: Mapping[bytes, bytes], counters: list[list[Any]]) -> dict[tuple[int, str], int]:
    """(hour, metric) to units: of the hours that are over and of those that the counters still count."""
    hours: Counter[tuple[int, str]] = Counter()
    for field, packed in fields.items():
        if re.fullmatch(rb"h[0-9]+", field):
            stream = msgpack.Unpacker(raw=False)
            stream.feed(packed)
            for hour, _name, metric, units in _chunks(list(stream), 4):
                assert 0 <= hour < 24
                assert units > 0, f"an hour that counts {units} units"
                hours[int(field[1:]) * 24 + hour, metric] += units
    for counter in counters:
        metric, hour, units = counter[1], counter[7], counter[10]
        hours[hour, metric] += units
    return dict(+hours)


def instance_state(packed: bytes, beat: float | None, ttl_ms: int) -> InstanceState:
    reader = msgpack.Unpacker()
    reader.feed(packed)
    epoch, seq, held = (reader.unpack() for _ in range(3))
    return InstanceState(
        epoch=epoch,
        seq=seq,
        held=held,
        heartbeat_ms=None if beat is None else int(beat),
        expires=ttl_ms >= 0,
    )


def home_state(clock: bytes | None, fields: dict[bytes, bytes]) -> HomeState:
    latest_us, *stepped = _values(clock)[1:] if clock else (0,)
    departed = {}
    for field, units in fields.items():
        if field.startswith(b"departed:"):
            departed[integer(field.removeprefix(b"departed:"))] = integer(units)
    return HomeState(
        latest_us=latest_us,
        stepped=(stepped[0], stepped[1]) if stepped else None,
        epochs=integer(fields.get(b"epochs", b"0")),
        departed=departed,
    )


def entry_of(fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        fields[b"o"].decode(),
        integer(fields[b"q"]),
        integer(fields[b"t"]),
        tuple(tuple(event) for event in json.loads(fields[b"e"])),
        json.loads(fields.get(b"a", b"{}")),
    )
