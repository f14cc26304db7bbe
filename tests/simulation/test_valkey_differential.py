"""The simulated server answers as the real one: random calls and all scripts go to both at the same instant.

Every reply is compared, and at the end everything that both have. DIFFERENTIAL_EXAMPLES: sequences of random calls,
e.g. 20000 over night; DIFFERENTIAL_SEED: the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.ledger.machine import LedgerMachine
from tests.simulation.valkey import hash_commands
from tests.simulation.valkey.clients import sync_client
from tests.simulation.valkey.held_clock import compiler
from tests.simulation.valkey.random_calls import MAKERS, Maker, random_call
from tests.simulation.valkey.registry import COMMANDS, KeysAt
from tests.simulation.valkey.server import SimulatedValkey
from tests.simulation.valkey.twins import Twins, TwinsDiffer, twins_in

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "120"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))
CALLS = 60
MOVES_US = (1, 999, 1000, 400_000, 1_000_000, 90_000_000)

pytestmark = pytest.mark.skipif(compiler() is None, reason="a C compiler makes the library that holds a server's clock")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins_in(tmp_path_factory.mktemp("twins")) as twins:
        yield twins


@pytest.fixture
def twins(servers: Twins) -> Twins:
    servers.reset()
    return servers


def one_sequence(twins: Twins, seed: int) -> None:
    random = Random(seed)
    maker = Maker(random)
    twins.reset()
    for _ in range(CALLS):
        if random.random() < 0.15:
            twins.move(random.choice(MOVES_US))
        parts = random_call(maker)
        reply = twins.call(*parts)
        if parts[0] == b"XADD" and isinstance(reply, bytes):
            maker.ids.append(reply)
    twins.compare_contents()


def test_random_calls_are_answered_alike(twins: Twins) -> None:
    for seed in range(SEED, SEED + EXAMPLES):
        try:
            one_sequence(twins, seed)
        except TwinsDiffer as error:
            raise AssertionError(f"seed {seed}: {error}") from None


def test_a_server_that_differs_is_found(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def hlen_of_living(server: SimulatedValkey, parts: list[bytes]) -> Any:
        return len(hash_commands.hkeys(server, parts))

    wrong = COMMANDS[b"HLEN"]
    monkeypatch.setitem(
        COMMANDS, b"HLEN", type(wrong)("hlen", hlen_of_living, wrong.arity, keys=wrong.keys)
    )  # fmt: skip
    twins.call("HSET", "key", "field", "value")
    twins.call("HPEXPIRE", "key", 10, "FIELDS", 1, "field")
    twins.move(20_000)
    with pytest.raises(TwinsDiffer):
        twins.call("HLEN", "key")


SHIPPED_PAIRS = "values, number, each, fail = unpack, tonumber, pairs,"
SORTED_PAIRS = """
local function sorted_pairs(t)
  local keys, at = {}, 0
  for key in next, t do
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b) return type(a) == type(b) and a < b or type(a) < type(b) end)
  return function()
    at = at + 1
    return keys[at], t[keys[at]]
  end
end
"""


def with_sorted_pairs(text: str) -> str:
    """Where a table has its keys is a matter of a seed in the real server. Here all scripts walk in the same order."""
    assert text.count(SHIPPED_PAIRS) == 1, "the scripts walk along tables by another name"
    return SORTED_PAIRS + text.replace(SHIPPED_PAIRS, SHIPPED_PAIRS.replace("pairs", "sorted_pairs"))


class TwinMachine(LedgerMachine):
    """The ledger's state machine, of which only the calls count here: all scripts of lua/, as gateways and loaders use
    them, on good and on broken data."""

    twins: Twins

    def __init__(self) -> None:
        self.twins.reset()
        super().__init__(sync_client(self.twins.open), edit=with_sorted_pairs)
        self.repeats = Unjudged()  # type: ignore[assignment]

    def teardown(self) -> None:
        self.twins.compare_contents()
        super().teardown()


class Unjudged:
    def note(self, *_: Any) -> None: ...


def test_the_scripts_of_the_ledger_do_alike(twins: Twins) -> None:
    machine = type("Machine", (TwinMachine,), {"twins": twins})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(5, EXAMPLES // 12), stateful_step_count=20, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_every_command_is_declared_as_the_real_server_declares_it(twins: Twins) -> None:
    """Arity, keys, and who refuses it."""
    for name, command in COMMANDS.items():
        [real] = twins.only_real("COMMAND", "INFO", name.decode())
        is_movable = command.keys is not None and not isinstance(command.keys, KeysAt)
        keys = command.keys if isinstance(command.keys, KeysAt) else KeysAt(0, 0, 0)
        flags = {str(flag) for flag in real[2]} | {flag.decode() for flag in real[2] if isinstance(flag, bytes)}
        assert (command.name, command.arity) == (real[0].decode(), real[1])
        assert is_movable == ("movablekeys" in flags), name
        assert is_movable or (keys.first, keys.last, keys.step) == tuple(real[3:6]), name
        if not command.container:
            declared = command.writes, command.grows, not command.scripts, command.while_loading, command.while_busy
            wanted = ("write", "denyoom", "noscript", "loading", "allow_busy")
            assert declared == tuple(each in flags for each in wanted), name


def test_every_command_has_a_case() -> None:
    """Those without one are containers, or tried below by name."""
    by_name = {
        "eval", "fcall", "fcall_ro", "flushall", "flushdb", "script|load", "script|flush", "function|load",
        "function|delete", "function|flush", "role", "command|getkeys",
    }  # fmt: skip
    names = {command.name for command in COMMANDS.values() if not command.container}
    assert names == MAKERS.keys() | by_name
    assert not MAKERS.keys() & by_name


@pytest.mark.parametrize("name", ["flushall", "flushdb", "script|flush", "function|flush"])
def test_what_empties_a_server_leaves_nothing(twins: Twins, name: str) -> None:
    twins.call("SET", "key", "value")
    sha = twins.call("SCRIPT", "LOAD", "return 1")
    twins.call("FUNCTION", "LOAD", "#!lua name=one\nredis.register_function('one', function() return 1 end)")
    assert twins.call(*name.upper().split("|")) == b"OK"
    twins.call("GET", "key")
    twins.call("EVALSHA", sha, 0)
    twins.call("FCALL", "one", 0)
    twins.call("FUNCTION", "LIST", "WITHCODE")


TROUBLES = {
    "out_of_memory": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "lacks_replicas": (
        ["CONFIG", "SET", "min-replicas-to-write", "1"],
        ["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
    "is_replica": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
}
WRITER = """
local function write(keys, arguments)
  return redis.call('SET', keys[1], arguments[1])
end
redis.register_function('write', write)
"""
UNHAPPY_CALLS = (
    ("GET", "key"), ("SET", "key", "2"), ("DEL", "key"), ("HSET", "hash", "f", "v"), ("HDEL", "hash", "f"),
    ("XADD", "stream", "*", "f", "v"), ("XDEL", "stream", "1-1"), ("PEXPIRE", "key", 100), ("ZADD", "zset", 1, "a"),
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "stream", ">"), ("XPENDING", "stream", "g"), ("TIME",), ("PING",),
    ("FCALL", "write", 1, "key", "2"), ("FCALL", "nowhere", 0),
    ("FUNCTION", "LOAD", "REPLACE", "#!lua name=w\n" + WRITER),
    ("FUNCTION", "DELETE", "nowhere"), ("SCRIPT", "LOAD", "return 1"),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, "key"),
    ("EVAL", "return redis.call('SET', KEYS[1], 2)", 1, "key"),
    ("EVAL", "redis.call('DEL', 'other') return redis.call('SET', KEYS[1], 3)", 1, "key"),
    ("EVAL", "return {redis.pcall('SET', KEYS[1], 2), redis.pcall('DEL', 'a'), redis.pcall('SET', 'a', 4)}", 1, "key"),
)  # fmt: skip


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_a_server_in_trouble_refuses_alike(twins: Twins, trouble: str) -> None:
    twins.call("SET", "key", "1")
    twins.call("XGROUP", "CREATE", "stream", "g", "0", "MKSTREAM")
    twins.call("FUNCTION", "LOAD", "#!lua name=w\n" + WRITER)
    begin, end = TROUBLES[trouble]
    twins.only_real(*begin)
    setattr(twins.simulated.trouble, trouble, True)
    try:
        for call in UNHAPPY_CALLS:
            twins.call(*call)
    finally:
        twins.only_real(*end)
        setattr(twins.simulated.trouble, trouble, False)
    for call in UNHAPPY_CALLS:
        twins.call(*call)
    twins.compare_contents()


@pytest.mark.parametrize(
    "text",
    [
        "return {1, 2.9, -2.9, 2^53, -2^53, 2^62, 'x', true, false, {}, {1, nil, 3}, {a = 1}}",
        "return {{ok = 'fine'}, {err = 'CODE text'}, redis.status_reply('y'), redis.error_reply('text')}",
        "return redis.error_reply('-CODE more words')",
        "return nil",
        "return",
        "return {KEYS, ARGV, #KEYS}",
        "error('words')",
        "error({err = 'CODE words'})",
        "error({})",
        "return global",
        "global = 1",
        "syntax error",
        "local ok, problem = pcall(redis.call, 'GET') return {tostring(ok), type(problem), problem}",
        "local ok, problem = pcall(error, {err = 5}) return {tostring(ok), type(problem), problem}",
        "local ok, problem = pcall(function() local x = nil; return x.y end) return problem",
        "return redis.pcall('HGET', 'string', 'f')",
        "return redis.call('HGET', 'string', 'f')",
        "return redis.call('NOPE')",
        "return redis.call()",
        "return redis.call('GET', {})",
        "return redis.call('EVAL', 'return 1', 0)",
        "return {redis.call('TYPE', 'string'), redis.call('GET', 'none'), redis.call('HMGET', 'none', 'a', 'b')}",
        "local all = {} for _, n in ipairs({3, 2^53, 0.1, 1e-7, 1e300, 1/0, -1/0, 123456.789e3, -1.5e-10, 2^63, 1e21, "
        "1e15 + 0.5}) do redis.call('SET', 'n', n) all[#all + 1] = redis.call('GET', 'n') end return all",
        "return redis.sha1hex('x')",
        "return {redis.REDIS_VERSION, redis.REDIS_VERSION_NUM, server.VALKEY_VERSION, server.VALKEY_VERSION_NUM}",
        "return {string.format('%.0f', 2^53), tostring(2^53), tostring(1e15), 2^31 .. ''}",
        "local packed = cmsgpack.pack() return packed",
        "return {cmsgpack.unpack('\\193')}",
        "return {cmsgpack.unpack('\\205\\1')}",
        "return {cmsgpack.unpack_limit('\\1\\2\\3', 2)}",
        "return {cmsgpack.unpack_limit('\\1\\2\\3', 3, 1)}",
        "return {cmsgpack.unpack_limit('\\1', 1, 5)}",
        "return {cmsgpack.unpack_one('\\1\\2', 1)}",
        "return cjson.encode({1, 'a\\n\\34/', {b = false}, 2^53, 0.1, 1e20, 12345678901234567890})",
        "return cjson.encode({a = 1800000000123})",
        """local t = cjson.decode('[1, {"a": "\\\\u00e9\\\\n"}, null, true, 1.5e3]')
        return {t[1], t[2].a, t[5], tostring(t[4])}""",
    ],
)
def test_a_script_means_the_same(twins: Twins, text: str) -> None:
    twins.call("SET", "string", "value")
    twins.call("EVAL", text, 2, "k1", "k2", "a1", "a2", "a3")
    twins.call("FUNCTION", "LOAD", f"#!lua name=x\nredis.register_function('f', function(KEYS, ARGV) {text} end)")
    twins.call("FCALL", "f", 2, "k1", "k2", "a1", "a2", "a3")
    twins.call("SCRIPT", "LOAD", text)


@pytest.mark.parametrize(
    "code",
    [
        "no shebang", "#!lua", "#!lua name=x", "#!lua\nx", "#!lua name=a-b\nx", "#!js name=x\nx",
        "#!lua name=x y=1\nx", "#!lua name=x name=y\nx", "#!lua name=x\nlocal a = 1",
        "#!lua name=x\nlocal a = string", "#!lua name=x\nredis.call('GET')",
        "#!lua name=x\nerror('early')", "#!lua name=x\nx(", "#!lua name=x\nglobal = 1",
        "#!lua name=x\nredis.register_function{function_name='f', callback=function() return 7 end}",
        "#!lua name=other\nredis.register_function('taken', function() return 1 end)",
    ],
)  # fmt: skip
def test_a_library_is_taken_or_refused_alike(twins: Twins, code: str) -> None:
    twins.call("FUNCTION", "LOAD", "#!lua name=first\nredis.register_function('taken', function() return 1 end)")
    twins.call("FUNCTION", "LOAD", code)
    twins.call("FUNCTION", "LOAD", "REPLACE", code)
    twins.call("FUNCTION", "LIST", "WITHCODE")
    twins.call("FCALL", "f", 0)
    twins.call("FCALL", "taken", 0)
    twins.call("FUNCTION", "DELETE", "first")
    twins.call("FCALL", "taken", 0)
    twins.call("FCALL_RO", "f", 0)


def test_a_function_keeps_what_it_knows_between_calls(twins: Twins) -> None:
    code = "#!lua name=x\nlocal n = 0\nredis.register_function('f', function() n = n + 1 return n end)"
    twins.call("FUNCTION", "LOAD", code)
    assert [twins.call("FCALL", "f", 0) for _ in range(3)] == [1, 2, 3]
    twins.call("FUNCTION", "LOAD", "REPLACE", code)
    assert twins.call("FCALL", "f", 0) == 1


ODD_NUMBERS = (
    0, 1, -1, 31, 32, -32, -33, 127, 128, -128, -129, 255, 256, 32767, -32768, -32769, 65535, 65536, 2**31,
    -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**53, -(2**53), 2**62, -(2**62), 0.5, 0.1, -1.5, 1e300, 3.4e38,
)  # fmt: skip


def test_msgpack_has_the_same_bytes(twins: Twins) -> None:
    numbers = ", ".join(map(repr, ODD_NUMBERS))
    lengths = ", ".join(f"string.rep('x', {n})" for n in (0, 1, 31, 32, 255, 256, 65535, 65536))
    lists = ", ".join(f"rows({n})" for n in (0, 1, 15, 16, 300, 65536))
    rows = "local function rows(n) local t = {} for i = 1, n do t[i] = i end return t end"
    for values in (numbers, lengths, lists, "{a = 1}, {[1] = 1, [3] = 3}, {{{}}}, nil, true, false, 1/0, -1/0, 'end'"):
        twins.call("EVAL", f"{rows} return cmsgpack.pack({values})", 0)
        twins.call("EVAL", f"{rows} return cmsgpack.pack(cmsgpack.unpack(cmsgpack.pack({values})))", 0)
    assert twins.call("EVAL", f"return cmsgpack.pack({numbers})", 0) == b"".join(
        msgpack.packb(number) for number in ODD_NUMBERS[:-5]
    ) + twins.call("EVAL", f"return cmsgpack.pack({', '.join(map(repr, ODD_NUMBERS[-5:]))})", 0)


def test_a_stream_is_trimmed_by_whole_nodes(twins: Twins) -> None:
    for number in range(350):
        twins.call("XADD", "s", f"{number + 1}-0", "n", number)
    for trim in (("MAXLEN", "~", 320), ("MAXLEN", "~", 240), ("MINID", "~", "205-0"), ("MINID", "203-0"),
                 ("MAXLEN", 120), ("MAXLEN", "~", 0, "LIMIT", 100), ("XDEL",), ("MINID", "~", "350-0")):  # fmt: skip
        if trim == ("XDEL",):
            twins.call("XDEL", "s", *[f"{number}-0" for number in range(290, 310)])
        else:
            twins.call("XTRIM", "s", *trim)
        twins.compare_contents()
