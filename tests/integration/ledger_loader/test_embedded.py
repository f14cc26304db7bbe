"""The embedded server: shared by all who name its directory, gone with the last of them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.valkey.embedded import EmbeddedError, EmbeddedValkey
from sidecar.valkey.topology import Embedded, connected

USER = """
import asyncio, sys
from pathlib import Path
from sidecar.valkey.embedded import EmbeddedValkey
from sidecar.valkey.topology import Embedded, connected

async def main():
    embedded = Embedded(Path(sys.argv[1]))
    server = EmbeddedValkey(embedded)
    await server.start()
    async with connected(embedded) as client:
        print(await client.incr("users"), int(server.started), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path / "a dir")


def user_process(embedded: Embedded) -> subprocess.Popen[str]:
    """A process that uses the server until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(embedded.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def count(embedded: Embedded) -> int:
    async with connected(embedded) as client:
        return int(await client.incr("count"))


async def test_what_was_written_is_there_after_a_restart(embedded: Embedded) -> None:
    counts = []
    for _ in range(3):
        async with EmbeddedValkey(embedded):
            counts.append(await count(embedded))

    assert counts == [1, 2, 3]


async def test_the_second_joins_the_first_and_the_last_stops_the_server(embedded: Embedded) -> None:
    first, second = EmbeddedValkey(embedded), EmbeddedValkey(embedded)
    await first.start()
    await second.start()
    assert (first.started, second.started) == (True, False)

    await first.stop()
    assert await count(embedded) == 1
    await second.stop()

    assert not embedded.socket.exists()
    await second.stop()  # once more does nothing


async def test_processes_that_start_at_once_share_one_server(embedded: Embedded) -> None:
    processes = [user_process(embedded) for _ in range(3)]
    try:
        lines = [process.stdout.readline().split() for process in processes if process.stdout]
    finally:
        for process in processes:
            process.communicate("")

    assert sorted(int(users) for users, _ in lines) == [1, 2, 3]
    assert sum(int(started) for _, started in lines) == 1
    assert not embedded.socket.exists()


async def test_a_server_outlives_the_process_that_started_it_and_is_found_by_the_next(embedded: Embedded) -> None:
    process = user_process(embedded)
    assert process.stdout is not None
    assert process.stdout.readline().split() == ["1", "1"]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    heir = EmbeddedValkey(embedded)
    await heir.start()
    assert not heir.started
    async with connected(embedded) as client:
        assert await client.get("users") == b"1"
    await heir.stop()

    assert not embedded.socket.exists()


async def test_a_keyboard_interrupt_of_the_terminal_s_group_does_not_reach_the_server(embedded: Embedded) -> None:
    async with EmbeddedValkey(embedded) as server:
        process = server._process
        assert process is not None

        assert os.getsid(process.pid) != os.getsid(0)


async def test_only_the_owner_can_reach_socket_and_data(embedded: Embedded) -> None:
    async with EmbeddedValkey(embedded):
        await count(embedded)
        paths = [embedded.directory, *embedded.directory.rglob("*")]

        assert embedded.socket in paths
        assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths} == {p.name: 0 for p in paths}


async def test_nothing_is_evicted_and_everything_is_written_through(embedded: Embedded) -> None:
    async with EmbeddedValkey(embedded, appendfsync="always"), connected(embedded) as client:
        settings = await client.config_get("maxmemory-policy", "appendonly", "appendfsync", "port")

    assert settings == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always", "port": "0"}


async def test_data_that_cannot_be_read_is_an_error_with_the_server_s_own_words(embedded: Embedded) -> None:
    appended = embedded.directory / "appendonlydir"
    appended.mkdir(parents=True)
    (appended / "appendonly.aof.manifest").write_text("rubbish\n")

    with pytest.raises(EmbeddedError, match=r"(?s)ended at once.*safe place.*log of Valkey ends with.*manifest"):
        await EmbeddedValkey(embedded).start()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EmbeddedError, match="file/data: Not a directory"):
        await EmbeddedValkey(Embedded(tmp_path / "file" / "data")).start()


async def test_a_server_that_hangs_is_not_replaced_by_a_second_one_on_the_same_data(embedded: Embedded) -> None:
    async with EmbeddedValkey(embedded) as server:
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedError, match=r"the server does not respond within 0\.1 s"):
                await EmbeddedValkey(embedded, start_timeout_s=0.1).start()
        finally:
            os.kill(server._process.pid, signal.SIGCONT)

        assert await count(embedded) == 1
