"""What a ledger takes of its memory, against what is there."""

from __future__ import annotations

import random

import pytest

from sidecar.ledger.verification.memory_use import KindUse, MemoryReport, drop_old_functions, memory_report
from sidecar.valkey.scripts import as_function, composed, function
from tests.integration.ledger_verification.conftest import METRIC, Broken, past
from tests.reference.messages import Group, Single

EXTRA = 300


def of_kind(report: MemoryReport, kind: str) -> KindUse:
    [found] = [each for each in report.kinds if each.kind == kind]
    return found


async def measured(ledger: Broken, sample: int = 200) -> MemoryReport:
    return await memory_report(ledger.client, ledger.keys, sample=sample, chance=random.Random(1))


async def test_every_kind_has_its_number_and_its_size(ledger: Broken) -> None:
    for hours in (30, 3):
        ledger.use("tpp-a", past(hours))
    for number in range(50):
        ledger.send("gw-1", Single.spooled("tpp-a", METRIC, 1, f"key {number}"))
    ledger.sync.xadd(ledger.keys.dead_letters(3), {"o": "x"})
    report = await measured(ledger, 10_000)
    for kind, number in (
        ("states of accounts", 2), ("index of accounts", 2), ("gateway processes", 1), ("dead letters", 1),
        ("refused settles", 0),
    ):  # fmt: skip
        assert of_kind(report, kind).count == number, kind
    assert of_kind(report, "idempotency keys").count == 52
    assert of_kind(report, "hours, by day").count >= 2
    state = sum(ledger.sync.memory_usage(key) for key in ledger.sync.keys("*:state:*"))
    assert of_kind(report, "states of accounts").size_bytes == state
    hashes = sum(ledger.sync.memory_usage(key) for key in ledger.sync.keys("*:account:*"))
    parts = ("terms and prices of accounts", "hours, by day", "idempotency keys")
    assert sum(of_kind(report, part).size_bytes for part in parts) == hashes
    assert 0 < report.ledger_bytes < report.used_bytes


async def test_a_sample_tells_of_many_accounts(ledger: Broken) -> None:
    accounts = [f"many-{number:04}" for number in range(EXTRA)]
    for start in range(0, EXTRA, 50):
        ledger.send("gw-1", *(Group.of(account, late=(1,)) for account in accounts[start : start + 50]))
    for account in accounts:
        ledger.sync.zadd(ledger.keys.accounts(ledger.keys.partition(account)), {account: 0})
    real = sum(ledger.sync.memory_usage(key) for key in ledger.sync.keys("*:state:*"))
    found = of_kind(await measured(ledger, 60), "states of accounts")
    assert (found.count, found.sampled, found.estimated) == (EXTRA + 2, 60, True)
    assert found.size_bytes == pytest.approx(real, rel=0.2)


async def test_a_sample_tells_of_many_api_keys(ledger: Broken) -> None:
    chance = random.Random(2)
    for _ in range(4_000):
        sha256 = chance.randbytes(32)
        ledger.sync.hset(ledger.keys.api_keys(sha256), sha256, "tpp-a")  # type: ignore[arg-type]
    real = sum(ledger.sync.memory_usage(key) for key in ledger.sync.keys("*:apikeys:*"))
    found = of_kind(await measured(ledger), "API keys")
    assert found.count == pytest.approx(4_002, rel=0.2)
    assert found.size_bytes == pytest.approx(real, rel=0.2)


async def test_an_empty_ledger_takes_next_to_nothing(ledger: Broken) -> None:
    ledger.sync.flushall()
    report = await measured(ledger)
    assert report.ledger_bytes == 0


async def test_what_is_wrong_is_said(ledger: Broken) -> None:
    ledger.sync.xadd(ledger.keys.refused(3), {"o": "x"})
    used = ledger.sync.info("memory")["used_memory"]
    ledger.sync.config_set("maxmemory-policy", "allkeys-lru")
    try:
        without_limit = " ".join((await measured(ledger)).warnings)
        ledger.sync.config_set("maxmemory", int(used * 1.2))
        nearly_full = await measured(ledger)
    finally:
        ledger.sync.config_set("maxmemory", 0)
        ledger.sync.config_set("maxmemory-policy", "noeviction")
    assert "no maxmemory" in without_limit
    assert "allkeys-lru" in without_limit
    assert "1 refused settles: sidecar ledger refused list" in without_limit
    assert any("of maxmemory" in each for each in nearly_full.warnings)
    assert nearly_full.max_bytes == int(used * 1.2)


async def test_functions_of_other_releases_go_and_the_present_one_stays(ledger: Broken) -> None:
    current = function("batch")
    ledger.sync.function_load(current.library.decode(), replace=True)
    for release in range(2):
        old = as_function("batch", f"{composed('batch')}\n-- release {release}")
        ledger.sync.function_load(old.library.decode())
    ledger.sync.function_load("#!lua name=somebodys\nredis.register_function('somebodys', function() return 1 end)")
    report = await measured(ledger)
    [server] = report.servers
    assert server.current_functions == (current.name.decode(),)
    # One more is the tests' own, whose clock can be moved.
    assert len(server.old_functions) == 3
    gone = await drop_old_functions(ledger.client)
    assert len(gone[""]) == 3
    [server] = (await measured(ledger)).servers
    assert server.old_functions == ()
    assert ledger.sync.fcall("somebodys", 0) == 1
    ledger.use("tpp-a")  # whoever had the other one loads it again
    assert (await ledger.verify()).agrees
