"""``sidecar ledger verify|memory|refused``: what they print, and how they end."""

from __future__ import annotations

import asyncio
import json
from subprocess import CompletedProcess

from tests.conftest import free_port
from tests.integration.ledger_verification.conftest import METRIC, Broken
from tests.integration.ledger_verification.test_refused import event, refuse, settled
from tests.support.processes import sidecar


async def run(ledger: Broken, *arguments: str) -> CompletedProcess[str]:
    options = ledger.sync.get_connection_kwargs()
    url = f"valkey://{options['host']}:{options['port']}"
    return await asyncio.to_thread(sidecar, "ledger", *arguments, "--valkey", url)


async def test_a_ledger_that_agrees(ledger: Broken) -> None:
    ended = await run(ledger, "verify")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (
        "2 accounts and the holds of 1 process verified, no hour of which all events are kept: all agrees\n"
    )
    document = json.loads((await run(ledger, "verify", "--json", "--no-events", "--pages-per-second", "1000")).stdout)
    assert (document["agrees"], document["accounts"], document["differences"]) == (True, 2, [])


async def test_differences_are_named_and_end_with_1(ledger: Broken) -> None:
    ledger.change(
        "tpp-a", counters=[[*r[:8], r[8] + (r[1] == METRIC), *r[9:]] for r in ledger.values("tpp-a").counters]
    )
    ended = await run(ledger, "verify")
    assert ended.returncode == 1
    assert "account tpp-a" in ended.stdout
    assert ended.stdout.endswith(": 1 difference\n")
    document = json.loads((await run(ledger, "verify", "--json")).stdout)
    [difference] = document["differences"]
    assert (difference["check"], difference["expected"], difference["found"]) == ("hours", "7", "8")


async def test_what_nobody_holds_is_repaired_where_that_is_asked_for(ledger: Broken) -> None:
    ledger.sync.delete(ledger.keys.instance(0, "gw-1"))
    ledger.sync.zrem(ledger.keys.alive(0), "gw-1")
    ended = await run(ledger, "verify", "--repair")
    assert ended.returncode == 1
    assert f"epoch {ledger.epochs['gw-1']}: the control plane gives it back" in ended.stdout
    assert (await run(ledger, "verify")).returncode == 0
    [(_, line)] = ledger.sync.xrange(ledger.keys.audit_log(0))
    assert line[b"what"] == b"ledger verify --repair"


async def test_a_ledger_that_cannot_be_verified_ends_with_2(ledger: Broken) -> None:
    url = f"valkey://127.0.0.1:{free_port()}"
    ended = await asyncio.to_thread(sidecar, "ledger", "verify", "--valkey", url)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the ledger cannot be verified: ")
    assert "Traceback" not in ended.stderr
    ledger.sync.flushall()
    ended = await run(ledger, "verify")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "there is no ledger" in ended.stderr


async def test_memory_is_told_as_a_table_and_as_json(ledger: Broken) -> None:
    ended = await run(ledger, "memory")
    assert ended.returncode == 0, ended.stderr
    for text in ("states of accounts", "~2", "outbox", "API keys", "used: "):
        assert text in ended.stdout
    assert "warning: Valkey has no maxmemory" in ended.stderr
    document = json.loads((await run(ledger, "memory", "--json", "--drop-old-functions")).stdout)
    assert document["bytes"]["ledger"] < document["bytes"]["used"]
    assert len(document["dropped_functions"][""]) == 1, "that of the tests, whose clock can be moved"


async def test_refused_settles_are_listed_charged_and_dropped(ledger: Broken) -> None:
    assert (await run(ledger, "refused", "list")).stdout == "no refused settles\n"
    for account, units in (("tpp-a", 3), ("tpp-b", 4), ("tpp-b", 5)):
        refuse(ledger, account, event(account, units))
    ended = await run(ledger, "refused", "list")
    assert ended.returncode == 0, ended.stderr
    assert "its state cannot be read" in " ".join(ended.stdout.split())
    rows = json.loads((await run(ledger, "refused", "list", "--json", "--account", "tpp-b")).stdout)["refused"]
    assert [(row["account"], row["units"]) for row in rows] == [("tpp-b", 4), ("tpp-b", 5)]

    ended = await run(ledger, "refused", "reapply", "--id", rows[0]["id"])
    assert (ended.returncode, ended.stdout) == (0, "1 entry with 4 units charged\n")
    ended = await run(ledger, "refused", "drop", "--id", rows[1]["id"], "--reason", "a test", "--yes")
    assert ended.stdout == f"dropped {rows[1]['id']}: 5 units of account tpp-b\n1 entry dropped\n"
    ledger.sync.set(ledger.keys.state("tpp-a"), b"\0\0\1garbage")
    ended = await run(ledger, "refused", "reapply")
    assert ended.returncode == 1
    assert "of account tpp-a: " in ended.stderr
    assert settled(ledger, "tpp-b")[METRIC] == 11
    lines = ledger.sync.xrange(ledger.keys.audit_log(ledger.keys.partition("tpp-b")))
    assert [line[b"what"] for _, line in lines] == [b"ledger refused reapply", b"ledger refused drop"]


async def test_what_is_to_be_dropped_must_be_named_with_a_reason(ledger: Broken) -> None:
    for arguments in (
        ["--reason", "x"],
        ["--id", "1/1-1", "--reason", " "],
        ["--id", "nonsense", "--reason", "x", "--yes"],
    ):
        ended = await run(ledger, "refused", "drop", *arguments)
        assert ended.returncode == 2, arguments
        assert ended.stderr.startswith("error: ")
    assert (await run(ledger, "refused", "reapply", "--id", "nonsense")).returncode == 2
