"""A batch as it goes to ``batch.lua``, read back by another reader of msgpack."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import orjson
import pytest

from sidecar.ledger.client.batch import (
    HOLD,
    RELEASE,
    REPLAY,
    SETTLE,
    VALUES_PACKED,
    Batch,
    decode,
    encode,
    encode_refusal,
)
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Event, Hold, IdempotencyKey
from sidecar.valkey.command import bulk, encode_call, encode_command

SETTINGS = LinkSettings(idempotency_ttl_ms=1000, unpaid_per_second=40, unpaid_burst=9)


def hold(account: str, units: int = 1, metric: str = "api_calls", key: IdempotencyKey | None = None) -> Hold:
    return Hold(account, metric, units, key, lambda _: None)


def event(account: str, metric: str, units: int) -> Event:
    return account, metric, units, "/", "GET", 200, 1.0, None, None


def batch_of(*holds: Hold) -> Batch:
    batch = Batch(1)
    for each in holds:
        batch.add_hold(each)
    return batch


def values(packed: bytes) -> list[Any]:
    return list(msgpack.Unpacker(io.BytesIO(packed), raw=False))


def groups(batch: Batch, versions: dict[str, int] | None = None) -> list[Any]:
    _, arguments, _ = encode(batch, "gw.00", SETTINGS, versions or {}, str.encode)
    return [value for argument in arguments[1:] for value in values(argument)]


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ([1], [1, 1]),
        ([1, 1, 1], [3, 1]),
        ([300, 300], [2, 300]),
        ([1, 2], [-2, 1, 2]),
        ([2**53 - 1, 0], [-2, 2**53 - 1, 0]),
    ],
)
def test_equal_holds_are_a_number_of_them_and_others_are_named_one_by_one(units: list[int], said: list[int]) -> None:
    assert groups(batch_of(*(hold("a", each) for each in units))) == [1, 0, 1, 0, 0, 0, *said]


@pytest.mark.parametrize("version", [0, 1, 127, 128, 255, 256, 2**32])
def test_a_number_is_read_as_it_was_whatever_its_size(version: int) -> None:
    assert groups(batch_of(hold("a")), {"a": version}) == [1, version, 1, 0, 0, 0, 1, 1]


def test_what_is_settled_given_back_and_late_is_a_sum_by_account_and_metric() -> None:
    batch = Batch(7)
    for account, metric, units, epoch in [("a", "x", 3, 7), ("b", "x", 4, 7), ("a", "y", 5, 6), ("a", "x", 100, 7)]:
        each = hold(account, units, metric)
        each.epoch = epoch
        batch.add_settle(each, event(account, metric, units))
    keys, arguments, numbers = encode(batch, "gw.00", SETTINGS, {}, str.encode, 6, b"chain")
    assert keys == [b"a", b"b"]
    assert numbers == {"a": 1, "b": 2}
    head = values(arguments[0])
    epoch, number, origin, events, ttl_ms, count, metrics, singles, interval_us, burst, unpaid, confirmed, chain = head
    assert (confirmed, chain) == (6, "chain")
    assert (epoch, number, origin, ttl_ms, count) == (7, 0, "gw.00", 1000, 3)
    assert (interval_us, burst, unpaid) == (25_000, 9, [])
    assert (metrics, singles) == (["x", "y"], [])
    assert events.count('"GET"') == 4
    assert values(arguments[1]) == [1, 0, 1, 103, 0, 0, 0, 2, 0, 1, 4, 0, 0, 0, 1, 0, 2, 0, 0, 5, 0]


def test_what_has_an_idempotency_key_is_named_with_its_account_s_number_its_key_and_its_event() -> None:
    key = IdempotencyKey(b"\x80" * 16, b"f" * 16, 2, True)
    batch = batch_of(hold("a"), hold("b", 2, key=key))
    batch.epoch = 7
    owner, former, recorded, plain = (hold("b", 4, "sms", key) for _ in range(4))
    owner.epoch, owner.mark, former.epoch, former.mark, plain.epoch = 7, 4097, 6, 99, 7
    recorded.record, recorded.epoch = b"r" * 16, -1
    nameless = hold("c", 1)
    nameless.record = b"s" * 16
    for each in (owner, recorded, nameless, plain):
        batch.add_settle(each, event(each.account, each.metric, each.units))
    batch.add_release(former, unpaid=True)
    batch.add_release(hold("d"), unpaid=True)
    keys, arguments, numbers = encode(batch, "gw.00", SETTINGS, {"b": 300}, str.encode)
    assert keys == [b"a", b"b", b"c", b"d"]
    assert numbers == {"a": 1, "b": 2, "c": 3, "d": 4}
    first = list(msgpack.Unpacker(io.BytesIO(arguments[0]), raw=True))
    assert first[5:7] == [2, [b"api_calls", b"sms"]]
    text = b'["b","sms",4,"/","GET",200,1.0,null,null]'
    assert first[7] == [
        [2, 300, b"api_calls", 2, HOLD, b"\x80" * 16, b"f" * 16, 2, 1, b"", b""],
        [2, 300, b"sms", 4, SETTLE, b"\x80" * 16, b"f" * 16, 7, 4097, text, b""],
        [2, 300, b"sms", 4, REPLAY, b"\x80" * 16, b"f" * 16, 2, 1, text, b"r" * 16],
        [3, 0, b"api_calls", 1, REPLAY, b"", b"", 0, 0, b'["c","api_calls",1,"/","GET",200,1.0,null,null]', b"s" * 16],
        [2, 300, b"sms", 4, RELEASE, b"\x80" * 16, b"f" * 16, 6, 99, b"", b""],
    ]
    assert first[10] == [2, 1, 4, 1]
    assert values(arguments[1])[-7:] == [2, 300, 2, 4, 0, 0, 0], "a hold that has not got the key is like any"


def test_settles_that_no_account_can_take_are_one_value_with_their_events_and_marks() -> None:
    batch = Batch(7)
    batch.refusal = "it is no account"
    key = IdempotencyKey(b"\xab" * 16, b"\xcd" * 16, 2)
    owner, recorded, nameless = hold("a", 4, key=key), hold("a", 5, key=key), hold("a", 6)
    owner.epoch, owner.mark = 7, 99
    recorded.record = nameless.record = b"\xef" * 16
    for each in (hold("a", 3), owner, recorded, nameless):
        batch.add_settle(each, event("a", "api_calls", each.units))
    epoch, number, origin, account, reason, events, marks, confirmed = msgpack.unpackb(
        encode_refusal(batch, "gw.00", 3)
    )
    assert confirmed == 3
    assert (epoch, number, origin, account, reason) == (7, 0, "gw.00", "a", "it is no account")
    assert [units for _, _, units, *_ in orjson.loads(events)] == [3, 4, 5, 6]
    assert orjson.loads(marks) == [
        None,
        ["", "ab" * 16, "cd" * 16, 7, 99],
        ["ef" * 16, "ab" * 16, "cd" * 16, 2, 0],
        ["ef" * 16, "", "", 0, 0],
    ]


def test_a_reply_is_read() -> None:
    holds = [[b"\x91\x02", -1, 5, 9], 0, 10, 1, 1, -5, 3]
    assert decode(msgpack.packb([1, 17, holds, [], False], use_bin_type=False)) == (True, 17, holds, [], [])
    assert decode(msgpack.packb([0, 17, [], [], [19, 17]])) == (False, 17, [], [], [19, 17])


def test_no_argument_has_more_values_than_a_script_can_take() -> None:
    batch = batch_of(*(hold(f"tpp-{number}") for number in range(3000)))
    _, arguments, _ = encode(batch, "gw.00", SETTINGS, {}, str.encode)
    counts = [len(values(argument)) for argument in arguments[1:]]
    assert sum(counts) == 3000 * 8
    assert max(counts) < VALUES_PACKED + 8
    odd = batch_of(hold("a"), *(hold("b", units) for units in range(1, 3000)))
    _, arguments, _ = encode(odd, "gw.00", SETTINGS, {}, str.encode)
    assert max(len(values(argument)) for argument in arguments[1:]) < 8000


def test_a_call_is_the_command_that_it_says() -> None:
    call = encode_call(b"quota", 3, [bulk(b"k1"), bulk(b"") + bulk(b"k3")], [b"\r\n", b"x"])
    assert call == encode_command([b"FCALL", b"quota", b"3", b"k1", b"", b"k3", b"\r\n", b"x"])
    assert encode_command([b"A", b"bc"]) == b"*2\r\n$1\r\nA\r\n$2\r\nbc\r\n"
