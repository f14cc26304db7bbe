"""What the measurements stand on: the upstream with its sized answers, and connections that stay open."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h11
import orjson
import pytest

from loadtests.kit import idle, rig, upstream, wrk
from loadtests.kit.processes import RigError
from loadtests.scaling.curves import idle_connections


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with rig.upstream() as started:
        yield started


def ask(target: str, method: str = "GET", body: bytes = b"") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answers(port: int, sent: bytes, count: int, *, step: int | None = None) -> list[bytes]:
    """Bodies of the answers, as h11 reads them. ``step``: how many bytes are sent at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for at in range(0, len(sent), step or len(sent)):
        writer.write(sent[at : at + (step or len(sent))])
        if step:
            await asyncio.sleep(0.001)
    bodies = []
    client = h11.Connection(h11.CLIENT)
    for number in range(count):
        if number:
            client.start_next_cycle()
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        body = b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                client.receive_data(await asyncio.wait_for(reader.read(1 << 20), 10))
            elif isinstance(event, h11.Response):
                assert event.status_code == 200
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        bodies.append(body)
    writer.close()
    return bodies


async def test_sized_and_usual_answers_follow_each_other(port: int) -> None:
    sent = ask("/a") + ask("/bytes/0") + ask("/bytes/100000") + ask("/b")
    assert [len(body) for body in await answers(port, sent, 4)] == [len(upstream.BODY), 0, 100_000, len(upstream.BODY)]


@pytest.mark.parametrize("step", [None, 7, 4096])
async def test_bodies_of_requests_are_read_and_thrown_away(port: int, step: int | None) -> None:
    size = 300 if step == 7 else 50_000
    sent = ask("/bytes/0", "POST", b"\r\n\r\nGET /bytes/5 " + b"x" * size) + ask("/bytes/3")
    assert [len(body) for body in await answers(port, sent, 2, step=step)] == [len(upstream.BODY), 3]


def test_idle_connections_are_open_until_they_are_told_to_close() -> None:
    with rig.upstream() as port:
        with idle_connections(port, 20):
            there = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
            assert established(there, port) == 20
        there = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
        assert established(there, port) == 0


def established(table: str, port: int) -> int:
    """Connections whose far end is the port."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_connections_that_cannot_be_had_are_an_error_that_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RigError, match="5 idle connections could not be opened"), idle_connections(9, 5):
        pass
    assert "after 0 connections: " in capfd.readouterr().err


def test_an_answer_is_whole_with_its_last_byte() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
    assert idle.whole(answer)
    assert not any(idle.whole(answer[:end]) for end in range(len(answer)))


def test_connections_come_from_as_many_addresses_as_they_need() -> None:
    assert [idle.source_of(n) for n in (0, 4999, 5000, 9999)] == ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]


@pytest.mark.skipif(wrk.find() is None, reason="wrk is not installed")
def test_a_smoke_run_measures_and_checks_every_debit(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.scaling", "tiers", "--quick", "--json", str(found)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(found.read_bytes())["results"]
    assert [(row["curve"], row["point"]) for row in rows] == [("tiers", 1), ("tiers", 10)]
    assert all(figures["requests"] > 0 and figures["cpu_us"] > 0 for row in rows for figures in row["rounds"])
    assert "not measured: CPU per request, 100,000 accounts" in done.stdout


def test_without_wrk_it_is_said_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.scaling", "tiers"], capture_output=True, text=True, env={"PATH": "/nowhere"}
    )
    assert done.returncode == 1
    assert "wrk is not installed (apt-get install wrk" in done.stderr
