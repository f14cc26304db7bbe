"""Processes that end with their block, and what the kernel says of them (Linux)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STOP_S = 15


class RigError(Exception):
    """A measurement cannot be made; the message says why."""


@contextmanager
def running(
    command: Sequence[str], *, log: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block. Its errors go to ``log``, else to ours."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab")) if log is not None else None
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=None if env is None else {**os.environ, **env},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def family(pid: int) -> tuple[int, ...]:
    """A process and its children (nginx's master and workers)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *map(int, children))


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds on a processor of all threads of these processes, in nanoseconds' resolution."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mb(pids: Sequence[int]) -> float:
    """Resident memory of these processes, in units of 10^6 bytes."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return total / 1e6


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def await_port(port: int, process: subprocess.Popen[str], what: str, timeout_s: float = 20) -> None:
    """Waits until somebody listens.

    Raises:
        RigError: the process ended, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RigError(f"{what} ended at once, with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RigError(f"{what} does not listen on port {port} after {timeout_s:g} s")
