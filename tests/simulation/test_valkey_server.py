"""What a simulated server can be told to go through: rollback, restart, lagging replicas, slots that move, trouble."""

from __future__ import annotations

import hiredis
import pytest

from sidecar.ledger.keys import Keys
from sidecar.valkey.command import encode_command
from tests.reference.messages import Batch, Code, Group, Load, Loaded, Plan
from tests.simulation.valkey.clients import sync_client
from tests.simulation.valkey.cluster import SlotTable, slot_of
from tests.simulation.valkey.replies import OK, Error, Reply, encoded
from tests.simulation.valkey.server import SimulatedValkey, Version
from tests.simulation.valkey.session import RespSession
from tests.support.ledger_driver import RealLedger

COUNTING = "#!lua name=x\nlocal n = 0\nredis.register_function('f', function() n = n + 1 return n end)"
HERE, THERE = "10.0.0.1:6379", "10.0.0.2:6379"


class At:
    """A clock that a test sets."""

    now_us = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock() -> At:
    return At()


@pytest.fixture
def server(clock: At) -> SimulatedValkey:
    return SimulatedValkey(clock)


def refused(reply: Reply) -> str:
    assert isinstance(reply, Error), reply
    return str(reply)


def test_a_snapshot_does_not_change_with_the_server(server: SimulatedValkey) -> None:
    server.call("SET", "s", 1)
    server.call("HSET", "h", "a", 1)
    server.call("ZADD", "z", 1, "a")
    server.call("XADD", "x", "*", "a", 1)
    server.call("XGROUP", "CREATE", "x", "g", 0)
    before = server.snapshot()
    for _ in range(2):
        server.call("SET", "s", 2)
        server.call("HSET", "h", "a", 2, "b", 3)
        server.call("ZADD", "z", 2, "a")
        server.call("XADD", "x", "*", "a", 2)
        server.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", "x", ">")
        server.call("RENAME", "h", "other")
        server.call("HSET", "other", "a", 5)
        server.restore(before)
        assert server.call("GET", "s") == b"1"
        assert server.call("HGETALL", "h") == [b"a", b"1"]
        assert server.call("ZSCORE", "z", "a") == b"1"
        assert server.call("XLEN", "x") == 1
        assert server.call("XPENDING", "x", "g")[0] == 0
        assert server.call("EXISTS", "other") == 0


def test_a_replica_is_a_server_that_is_given_earlier_snapshots(server: SimulatedValkey, clock: At) -> None:
    replica = SimulatedValkey(clock, address="10.0.0.2:6379")
    replica.trouble.is_replica, replica.trouble.primary = True, server.address
    sent = []
    server.on_write = lambda: sent.append(server.snapshot())
    server.call("SET", "a", 1)
    server.call("EVAL", "redis.call('SET', 'a', 2) redis.call('SET', 'b', 2)", 0)
    server.call("EVAL", "return redis.call('GET', 'a')", 0)
    server.call("GET", "a")
    assert len(sent) == 2, "a call that writes nothing is nothing to replicate"
    replica.restore(sent[0])
    assert [replica.call("GET", key) for key in "ab"] == [b"1", None]
    replica.restore(sent[1])
    assert refused(replica.call("SET", "a", 3)).startswith("READONLY")
    assert replica.call("ROLE")[:3] == [b"slave", b"127.0.0.1", 6379]
    replica.trouble.is_replica = False
    assert replica.call("SET", "a", 3) == OK
    assert server.call("GET", "a") == b"2"


@pytest.mark.parametrize(("functions", "after"), [(True, 1), (False, "ERR Function not found")])
def test_after_a_restart_a_function_is_loaded_anew_or_gone(
    server: SimulatedValkey, functions: bool, after: int | str
) -> None:
    server.call("FUNCTION", "LOAD", COUNTING)
    sha = server.call("SCRIPT", "LOAD", "return 1")
    server.call("SET", "a", 1)
    assert [server.call("FCALL", "f", 0) for _ in range(2)] == [1, 2]
    server.restart(functions=functions)
    reply = server.call("FCALL", "f", 0)
    assert (str(reply) if isinstance(reply, Error) else reply) == after
    assert server.call("DBSIZE") == 0
    assert refused(server.call("EVALSHA", sha, 0)).startswith("NOSCRIPT")


def test_servers_share_no_functions(server: SimulatedValkey, clock: At) -> None:
    other = SimulatedValkey(clock)
    for each in (server, other):
        each.call("FUNCTION", "LOAD", COUNTING)
    assert [server.call("FCALL", "f", 0), server.call("FCALL", "f", 0), other.call("FCALL", "f", 0)] == [1, 2, 1]


def test_time_goes_by_as_the_clock_says(server: SimulatedValkey, clock: At) -> None:
    first = server.call("XADD", "x", "*", "a", 1)
    assert server.call("EVAL", "return redis.call('TIME')", 0) == [b"1800000000", b"0"]
    server.call("SET", "a", 1, "PX", 100)
    server.call("HSET", "h", "a", 1, "b", 1)
    server.call("HPEXPIRE", "h", 100, "FIELDS", 1, "a")
    clock.now_us -= 3_600_000_000
    assert server.call("XADD", "x", "*", "a", 1) == first.replace(b"-0", b"-1"), "an id never goes back"
    assert server.call("PTTL", "a") == 3_600_100
    clock.now_us += 3_600_200_000
    assert (server.call("GET", "a"), server.call("HKEYS", "h"), server.call("HLEN", "h")) == (None, [b"b"], 2)
    server.reclaim_expired()
    assert server.call("HLEN", "h") == 1


@pytest.mark.parametrize(
    ("trouble", "word"), [("is_loading", "LOADING"), ("is_busy", "BUSY"), ("disk_fails", "MISCONF")]
)
def test_a_server_in_trouble_says_so_until_it_is_over(server: SimulatedValkey, trouble: str, word: str) -> None:
    server.call("FUNCTION", "LOAD", COUNTING)
    setattr(server.trouble, trouble, True)
    assert refused(server.call("SET", "a", 1)).startswith(word)
    assert refused(server.call("FCALL", "f", 0)).startswith(word)
    if trouble == "is_busy":
        assert server.call("SCRIPT", "KILL") == OK
    setattr(server.trouble, trouble, False)
    assert server.call("SET", "a", 1) == OK


@pytest.fixture
def cluster(clock: At) -> tuple[SimulatedValkey, SimulatedValkey]:
    """Two servers; the first has all slots."""
    one, two = SimulatedValkey(clock, address=HERE), SimulatedValkey(clock, address=THERE)
    one.slots, two.slots = SlotTable.whole(HERE), SlotTable(THERE, [HERE] * 16384)
    return one, two


def test_a_slot_moves_from_server_to_server(cluster: tuple[SimulatedValkey, SimulatedValkey]) -> None:
    one, two = cluster
    assert one.slots is not None
    assert two.slots is not None
    slot = slot_of(b"{x}a")
    one.call("SET", "{x}a", 1)
    assert refused(two.call("GET", "{x}a")) == f"MOVED {slot} {HERE}"
    assert refused(one.call("MGET", "{x}a", "{y}a")).startswith("CROSSSLOT")
    one.slots.migrating[slot], two.slots.importing[slot] = THERE, HERE
    assert refused(one.call("GET", "{x}b")) == f"ASK {slot} {THERE}"
    assert refused(one.call("MGET", "{x}a", "{x}b")).startswith("TRYAGAIN")
    assert one.call("GET", "{x}a") == b"1"
    session = two.connect()
    assert two.execute(session, [b"ASKING"]) == OK
    assert two.execute(session, [b"SET", b"{x}b", b"2"]) == OK
    assert refused(two.execute(session, [b"GET", b"{x}b"])).startswith("MOVED"), "asking is for one call"
    one.call("DEL", "{x}a")
    for server in cluster:
        assert server.slots is not None
        server.slots.owners[slot] = THERE
        server.slots.migrating.clear()
        server.slots.importing.clear()
    assert refused(one.call("EVAL", "return 1", 1, "{x}b")) == f"MOVED {slot} {THERE}"
    assert two.call("GET", "{x}b") == b"2"
    assert "non local key" in refused(one.call("EVAL", "return redis.call('GET', '{x}b')", 0))
    assert [row[:2] for row in one.call("CLUSTER", "SLOTS")] == [[0, slot - 1], [slot, slot], [slot + 1, 16383]]
    one.slots.down = True
    assert refused(one.call("GET", "a")).startswith("CLUSTERDOWN")


def test_calls_come_in_pieces(server: SimulatedValkey) -> None:
    session = RespSession(server)
    data = encode_command([b"SET", b"a", b"1\r\n2"]) + encode_command([b"GET", b"a"]) + b"PING\r\n"
    answers = b"".join(session.receive(data[at : at + 1]) for at in range(len(data)))
    assert answers == encoded(OK) + b"$4\r\n1\r\n2\r\n" + b"+PONG\r\n"
    assert b"Protocol error" in session.receive(b"*1\r\nGET\r\n")
    assert session.closed


def test_replies_are_read_by_the_clients_own_parser() -> None:
    reader = hiredis.Reader()
    reader.feed(encoded([1, -5, b"x", None, OK, [], [Error(b"CODE a\r\nb")]]))
    read = reader.gets()
    assert read[:6] == [1, -5, b"x", None, b"OK", []]
    assert str(read[6][0]) == "CODE a  b"


@pytest.mark.parametrize("version", [Version(), Version(b"7.2.5", 0x070205), Version(is_valkey=False)])
def test_the_ledger_runs_on_a_simulated_server_of_every_version(clock: At, version: Version) -> None:
    server = SimulatedValkey(clock, version=version)
    ledger = RealLedger(sync_client(lambda: RespSession(server)), movable_clock=False, keys=Keys())
    epoch, seq = ledger.register("gw")
    plan = Plan({"api_calls": ("s", 1)}, 0, 2**53 - 1)
    assert ledger.load(Load("tpp", (plan,), ceiling=2)) == Loaded(1)
    reply = ledger.batch("gw", Batch(epoch, seq + 1, (Group.of("tpp", hold=(1, 1, 1), known_version=1),)))
    assert reply.groups[0] is not None
    assert [each.code for each in reply.groups[0].outcomes] == [Code.GRANTED, Code.GRANTED, Code.CREDIT]
