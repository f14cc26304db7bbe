"""The simulated server answers as the real one: random calls, and all of the project's own, go to both at the same instant.

Every reply is compared, and at the end everything that both have. DIFFERENTIAL_EXAMPLES: sequences of random calls, e.g.
20000 over night; DIFFERENTIAL_SEED: the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sidecar.valkey.topology import Client
from tests.integration.ledger.machine import LedgerMachine
from tests.simulation.valkey import hash_commands
from tests.simulation.valkey.clients import async_client, directly, sync_client
from tests.simulation.valkey.held_clock import compiler
from tests.simulation.valkey.random_calls import MAKERS, Maker, random_call
from tests.simulation.valkey.registry import COMMANDS
from tests.simulation.valkey.replies import Error
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


@pytest.fixture
async def client(twins: Twins) -> Client:
    """redis-py's asyncio client on both servers."""
    return async_client(directly(twins.open))


def test_every_command_has_a_case() -> None:
    """Those without one are containers, or tried below by name."""
    by_name = {
        "eval", "fcall", "fcall_ro", "flushall", "flushdb", "script|load", "script|flush", "function|load", "function|delete",
        "function|flush", "role",
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


def test_a_primary_says_that_it_is_one(twins: Twins) -> None:
    assert twins.simulated.call("ROLE")[0] == b"master"
    assert isinstance(twins.simulated.call("NOPE"), Error)
