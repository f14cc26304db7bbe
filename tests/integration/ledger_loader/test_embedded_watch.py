"""The embedded server is watched: ended or hung, one of its users starts it again, and looks at its data."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError
from structlog.testing import capture_logs

from sidecar.valkey import embedded_server
from sidecar.valkey.embedded import EmbeddedError, EmbeddedValkey
from sidecar.valkey.embedded_server import DamagedData, kill_server
from sidecar.valkey.embedded_watch import RETRY_S_MAX, RETRY_S_MIN, Counters, Watch
from sidecar.valkey.topology import Client, Embedded, connected

LIMIT_S = 20.0


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path / "a dir")


def user(embedded: Embedded, **options: float) -> EmbeddedValkey:
    return EmbeddedValkey(embedded, look_s=0.02, **options)  # type: ignore[arg-type]


def pid_of(embedded: Embedded) -> int:
    return int((embedded.directory / "valkey.pid").read_text())


async def until(condition: Callable[[], object], what: object) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never came to be: {what!r}"
        await asyncio.sleep(0.01)


async def count(embedded: Embedded) -> int:
    async with connected(embedded) as client:
        return int(await client.incr("count"))


@asynccontextmanager
async def using(*users: EmbeddedValkey) -> AsyncIterator[None]:
    try:
        for each in users:
            await each.start()
        yield
    finally:
        for each in users:
            await each.stop()


async def test_a_server_that_is_killed_is_started_again_with_its_data(embedded: Embedded) -> None:
    server = user(embedded)
    async with using(server):
        for expected in (1, 2, 3):
            assert await count(embedded) == expected
            os.kill(pid_of(embedded), signal.SIGKILL)
            await until(lambda expected=expected: server.counters.restarts == expected, server)
    assert not embedded.socket.exists()
    assert (server.counters.failed_restarts, server.counters.kills, server.counters.cut_bytes) == (0, 0, 0)


async def test_whoever_uses_it_starts_it_again_and_one_of_them_alone(embedded: Embedded) -> None:
    users = [user(embedded) for _ in range(4)]
    async with using(*users):
        before = pid_of(embedded)
        os.kill(before, signal.SIGKILL)
        await until(lambda: sum(each.counters.restarts for each in users) == 1, users)
        assert pid_of(embedded) != before
        await users[0].stop()  # who started it first is gone
        os.kill(pid_of(embedded), signal.SIGKILL)
        await until(lambda: sum(each.counters.restarts for each in users[1:]) >= 1, users)
        assert await count(embedded) == 1
    assert sum(each.counters.restarts for each in users) == 2


async def test_a_server_that_hangs_is_killed_and_started_again(embedded: Embedded) -> None:
    server = user(embedded, hung_s=0.3)
    async with using(server):
        assert await count(embedded) == 1
        os.kill(pid_of(embedded), signal.SIGSTOP)
        await until(lambda: server.counters.restarts == 1, server)
        assert server.counters.kills == 1
        assert await count(embedded) == 2


async def test_a_server_that_hangs_when_its_last_user_leaves_is_no_orphan(embedded: Embedded) -> None:
    server = user(embedded, hung_s=0.3)
    await server.start()
    pid = pid_of(embedded)
    assert server._watching is not None
    server._watching.cancel()
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert pid not in _servers(embedded.directory)
    async with using(server):
        assert await count(embedded) == 1


async def test_a_server_that_a_full_disk_ended_is_started_again_when_there_is_room(embedded: Embedded) -> None:
    """A limit on the size of its files stands for the disk: it ends by SIGXFSZ, in the middle of a write."""
    server = user(embedded)
    async with using(server):
        assert await count(embedded) == 1
        (appended,) = (embedded.directory / "appendonlydir").glob("*.incr.aof")
        room = appended.stat().st_size + 40
        resource.prlimit(pid_of(embedded), resource.RLIMIT_FSIZE, (room, room))
        async with connected(embedded) as client:
            while not server.counters.restarts:
                with suppress(RedisError, OSError):
                    await client.set("x", "y" * 30)
                await asyncio.sleep(0)
        assert server.counters.cut_bytes > 0
        assert await count(embedded) == 2


async def test_bytes_of_an_incomplete_command_are_counted_and_named(embedded: Embedded) -> None:
    async with using(user(embedded)):
        await count(embedded)
    (appended,) = (embedded.directory / "appendonlydir").glob("*.incr.aof")
    with appended.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\n")
    server = user(embedded)
    with capture_logs() as lines:
        async with using(server):
            assert await count(embedded) == 2
    assert server.counters.cut_bytes == 17
    assert [(line["log_level"], line["bytes"]) for line in lines if "cut off" in line["event"]] == [("error", 17)]


async def test_data_that_is_damaged_is_named_once_and_never_tried_again(embedded: Embedded) -> None:
    server = user(embedded)
    await server.start()
    await count(embedded)
    (appended,) = (embedded.directory / "appendonlydir").glob("*.incr.aof")
    content = bytearray(appended.read_bytes())
    content[0] = ord("#") ^ 1
    with capture_logs() as lines:
        os.kill(pid_of(embedded), signal.SIGSTOP)  # so that it is not started before its data is damaged
        appended.write_bytes(content)
        os.kill(pid_of(embedded), signal.SIGKILL)
        await until(lambda: server.counters.damaged, server)
        assert server._watching is not None
        await server._watching
    (line,) = [line for line in lines if "its data" in line["event"]]
    assert "Copy" in line["error"]
    assert "valkey-check-aof" in line["error"]
    assert "Bad file format" in line["error"]
    assert server.counters.failed_restarts == 1
    await server.stop()
    with pytest.raises(EmbeddedError, match="cannot load its data"):
        await user(embedded).start()


async def test_what_the_message_says_repairs_the_data(embedded: Embedded) -> None:
    async with using(user(embedded)):
        await count(embedded)
    (appended,) = (embedded.directory / "appendonlydir").glob("*.incr.aof")
    with appended.open("ab") as file:
        file.write(b"rubbish")
    with pytest.raises(EmbeddedError) as caught:
        await user(embedded).start()
    command = str(caught.value).partition("damage: ")[2].partition(" . Start")[0]
    assert await asyncio.to_thread(_run, command) == 0
    async with using(user(embedded)):
        assert await count(embedded) == 2


async def test_a_server_that_does_not_start_is_tried_ever_more_seldom(tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 40:
            raise asyncio.CancelledError

    async def start_again() -> bool:
        raise EmbeddedError("no room")

    counters = Counters()
    watch = Watch(tmp_path, tmp_path / "no.sock", 30.0, counters, start_again, look_s=0.0, sleep=sleep)
    with pytest.raises(asyncio.CancelledError), capture_logs() as lines:
        await watch.run()
    retries = [wait for wait in waits if wait]
    assert retries[:4] == [0.1, 0.2, 0.4, 0.8]
    assert retries[-1] == RETRY_S_MAX
    assert counters.failed_restarts == len(lines) == 20


async def test_one_that_ends_again_and_again_soon_after_its_start_is_tried_ever_more_seldom(tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 40:
            raise asyncio.CancelledError

    async def start_again() -> bool:
        return True

    watch = Watch(tmp_path, tmp_path / "no.sock", 30.0, Counters(), start_again, look_s=0.0, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert [wait for wait in waits if wait][-1] == RETRY_S_MAX


async def test_one_that_has_lived_for_a_while_is_started_again_at_once(embedded: Embedded) -> None:
    looks = 0

    async def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise asyncio.CancelledError

    async def start_again() -> bool:
        raise AssertionError("it answers")

    async with using(user(embedded)):
        watch = Watch(embedded.directory, embedded.socket, 30.0, Counters(), start_again, sleep=sleep)
        watch._retry_s = RETRY_S_MAX
        with pytest.raises(asyncio.CancelledError):
            await watch.run()
    assert watch._retry_s == RETRY_S_MIN


async def test_a_server_that_answers_with_errors_lives(embedded: Embedded) -> None:
    """It runs a script; a full disk (MISCONF) and a start (LOADING) are told in the same way."""
    server = user(embedded, hung_s=0.2)
    async with using(server), connected(embedded) as client, connected(embedded) as other:
        await client.config_set("busy-reply-threshold", 10)
        busy = asyncio.create_task(client.eval("while true do end", 0))
        try:
            await _until_busy(other)
            await asyncio.sleep(0.6)  # three times what would be a hang
        finally:
            await other.script_kill()
            await asyncio.gather(busy, return_exceptions=True)
        assert (server.counters.kills, server.counters.restarts) == (0, 0)


async def _until_busy(client: Client) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            await client.ping()
        except ResponseError:
            return
    raise AssertionError("never busy")


async def test_what_an_older_start_logged_says_nothing_of_this_one(embedded: Embedded) -> None:
    embedded.directory.mkdir()
    (embedded.directory / "valkey.log").write_text(
        "Bad file format reading the append only file x.aof: make a backup\n"
    )
    (embedded.directory / "valkey.sock").mkdir()  # another reason to end at once
    (embedded.directory / "appendonlydir").write_text("")
    with pytest.raises(EmbeddedError) as caught:
        await user(embedded, start_timeout_s=5.0).start()
    assert not isinstance(caught.value, DamagedData)


async def test_a_process_that_has_the_pid_of_a_dead_server_is_not_killed(embedded: Embedded) -> None:
    async with using(user(embedded)):
        pass
    bystander = _bystander()
    try:
        (embedded.directory / "valkey.pid").write_text(f"{bystander.pid}\n")
        assert not kill_server(embedded.directory)
        assert bystander.poll() is None
    finally:
        bystander.communicate()
    for nonsense in ("", "0", "-1", "1", "rubbish", "99999999"):
        (embedded.directory / "valkey.pid").write_text(nonsense)
        assert not kill_server(embedded.directory)


async def test_the_server_of_another_directory_is_not_killed(embedded: Embedded, tmp_path: Path) -> None:
    other = Embedded(tmp_path / "other")
    async with using(user(embedded), user(other)):
        (embedded.directory / "valkey.pid").write_text(str(pid_of(other)))
        assert not kill_server(embedded.directory)
        assert await count(other) == 1


async def test_a_cancelled_start_leaves_no_server(embedded: Embedded) -> None:
    for rounds in range(6):
        server = user(embedded)
        starting = asyncio.create_task(server.start())
        await until(lambda: (embedded.directory / "server").exists(), "it begins")
        await asyncio.sleep(rounds * 0.004)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()
        assert not _servers(embedded.directory)


async def test_a_cancelled_stop_ends_the_server_all_the_same(embedded: Embedded) -> None:
    for turns in (0, 1, 2, 5, 10):
        server = user(embedded)
        await server.start()
        stopping = asyncio.create_task(server.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping.cancel()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        if not turns:
            await server.stop()  # the first had not begun
        assert not _servers(embedded.directory)
    assert embedded_server.data_sizes(embedded.directory)


def _run(command: str) -> int:
    return subprocess.run(["bash", "-c", command], input=b"y\n", check=False, capture_output=True).returncode


def _bystander() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


def _servers(directory: Path) -> list[int]:
    """Processes that hold the server's lock file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if str(directory / "server") in links:
            found.append(int(process.name))
    return found
