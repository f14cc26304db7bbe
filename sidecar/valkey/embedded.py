"""The embedded Valkey of ``embedded:///directory``: started by whoever comes first, stopped by whoever leaves last.

The processes of one machine that name the same directory share one server. Three locks (flock) in the directory say who
is there, and the kernel drops them with their process, so that a crash leaves nothing to clean up:

* ``mutex``: held while somebody starts or joins, or leaves.
* ``users``: held shared by every process that uses the server.
* ``server``: held by the server itself, which inherits it. While it is held no second server may touch the data.

Every user watches the server (`sidecar.valkey.embedded_watch`): one that ended is started again, by whoever gets the
mutex first.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from redis.exceptions import RedisError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.valkey.embedded_server import (
    DamagedData,
    Durability,
    EmbeddedError,
    ServerLog,
    client_of,
    cut_bytes,
    data_sizes,
    kill_server,
    launch,
)
from sidecar.valkey.embedded_watch import HUNG_S, LOOK_S, Counters, Watch
from sidecar.valkey.url import Embedded, Standalone

__all__ = ["DamagedData", "Durability", "EmbeddedError", "EmbeddedValkey"]

log = get_logger("sidecar.valkey")

_POLL_S: Final = 0.02


class EmbeddedValkey:
    """One process's use of the server in a directory.

    ``appendfsync`` says how much a crash of the machine may lose (Valkey's ``appendfsync``): nothing, a second, or what
    the kernel had not written. It counts only if this process starts the server. ``hung_s``: how long a server may give
    no answer before it is killed and started again. ``look_s``: how long between two looks at it.
    """

    def __init__(
        self,
        topology: Embedded,
        *,
        appendfsync: Durability = "everysec",
        start_timeout_s: float = 60.0,
        hung_s: float = HUNG_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.started = False
        """Whether this process started the server, and did not find it running."""
        self.counters = Counters()
        self._topology = topology
        self._appendfsync = appendfsync
        self._timeout_s = start_timeout_s
        self._hung_s = hung_s
        self._look_s = look_s
        self._users: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> Standalone:
        """Start the server, or find it running; answer where it is. From then on it is watched.

        Raises:
            EmbeddedError: no permission, no server for this platform, a data directory that it cannot read, a timeout.
        """
        assert self._users is None, "started twice"
        directory = self._topology.directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mutex = await self._lock("mutex", "another process is starting or stopping the server")
        except OSError as error:
            raise EmbeddedError(f"{directory}: {error.strerror}") from None
        try:
            server = _try_lock(directory / "server")
            if server is not None:
                await self._launch(server)
                self.started = True
            else:
                await self._until_ready()
            self._users = _open(directory / "users")
            fcntl.flock(self._users, fcntl.LOCK_SH)
        finally:
            os.close(mutex)
        watch = Watch(
            directory, self._topology.socket, self._hung_s, self.counters, self.start_again, look_s=self._look_s
        )
        self._watching = asyncio.get_running_loop().create_task(watch.run())
        return Standalone(self._topology.socket)

    async def start_again(self) -> bool:
        """Starts a server that has ended. False: somebody else does, or has; True: it answers.

        Raises:
            EmbeddedError: it does not start. DamagedData: it never will.
        """
        mutex = _try_lock(self._topology.directory / "mutex")
        if mutex is None:
            return False
        try:
            server = _try_lock(self._topology.directory / "server")
            if server is None:
                return False
            await self._launch(server)
            return True
        finally:
            os.close(mutex)

    async def _launch(self, server: int) -> None:
        """Launches a server with its lock and waits until it answers. The caller holds the mutex."""
        directory = self._topology.directory
        if self._process is not None:
            self._process.wait()  # it has let go of its lock, so it is gone
            self._process = None
        said, before = ServerLog(directory), data_sizes(directory)
        try:
            process = launch(directory, self._topology.socket, server, self._appendfsync)
        finally:
            os.close(server)  # the server has its own by now
        try:
            await self._until_ready(process, said)
        except BaseException:  # a cancellation too must not leave a server behind
            process.kill()  # nobody else knows of it, and it may be reading its data and deaf to a polite word
            process.wait()
            raise
        self._process = process
        lost = cut_bytes(before, data_sizes(directory))
        if lost:
            self.counters.cut_bytes += lost
            log.error("the embedded Valkey cut off the end of its data: its last command was incomplete",
                      directory=str(directory), bytes=lost)  # fmt: skip

    async def stop(self) -> None:
        """Leave; the last one shuts the server down, with everything written to disk. A cancellation is held back until
        that is done: a server that nobody stops would stay for ever.

        Raises:
            EmbeddedError: it does not end, or another process is starting or stopping it for too long.
        """
        if self._watching is not None or self._users is not None:
            await _held_back(self._stop())

    async def _stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._users is not None:
            await self._leave()

    async def _leave(self) -> None:
        mutex = await self._lock("mutex", "another process is starting or stopping the server")
        try:
            users, self._users = self._users, None
            assert users is not None
            try:
                # From shared to exclusive: possible only for the last.
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                os.close(users)
            await self._shut_down()
        finally:
            os.close(mutex)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._users is None else "started" if self.started else "joined"
        return f"<EmbeddedValkey {self._topology.directory} {state} {self.counters}>"

    async def _lock(self, name: str, otherwise: str, timeout_s: float | None = None) -> int:
        """A descriptor that holds the lock; closing it lets go."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while (descriptor := _try_lock(self._topology.directory / name)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self._topology.directory}: {otherwise}")
            await asyncio.sleep(_POLL_S)
        return descriptor

    async def _until_ready(self, process: subprocess.Popen[bytes] | None = None, said: ServerLog | None = None) -> None:
        deadline = time.monotonic() + self._timeout_s
        client = client_of(self._topology.socket, self._timeout_s)
        reason = "no answer"
        try:
            while time.monotonic() < deadline:
                if process is not None and said is not None and process.poll() is not None:
                    raise said.why_it_ended()
                try:
                    await client.ping()
                except (RedisError, OSError) as error:
                    reason = reason_of(error)  # not there yet, or reading its data (LOADING), or busy
                else:
                    return
                await asyncio.sleep(_POLL_S)
        finally:
            await client.aclose()
        directory = self._topology.directory
        raise EmbeddedError(f"{directory}: the server does not respond within {self._timeout_s} s ({reason})")

    async def _shut_down(self) -> None:
        client = client_of(self._topology.socket, self._timeout_s)
        try:
            await client.shutdown()
        except (RedisError, OSError):
            pass  # it went away instead of answering, as it should, or was gone before
        finally:
            await client.aclose()
        directory = self._topology.directory
        try:
            os.close(await self._lock("server", "the server does not end", min(self._hung_s, self._timeout_s)))
        except EmbeddedError:
            if not kill_server(directory):
                raise
            self.counters.kills += 1
            log.error("the embedded Valkey did not end and was killed", directory=str(directory))
            os.close(await self._lock("server", "the server does not end"))
        if self._process is not None:
            self._process.wait()  # it has let go of its lock, so it is gone
            self._process = None


async def _held_back(work: Coroutine[Any, Any, None]) -> None:
    """Does it to the end; a cancellation that comes meanwhile is raised then."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: S110  it is the task's, raised below
            pass
    if cancelled is not None:
        raise cancelled
    task.result()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(path: Path) -> int | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
