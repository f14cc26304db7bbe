"""Running the command line as its users do: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@dataclass
class Running:
    """A started command. ``ready`` is the line of JSON that it printed, ``exit_code`` what it ended with."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    exit_code: int | None = None
    errors: list[bytes] = field(default_factory=list)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.exit_code = self.process.wait(STOP_TIMEOUT_S)
        return self.exit_code


def sidecar(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        check=False,
    )


@contextmanager
def running(
    *arguments: str, environment: dict[str, str] | None = None, descriptors: int | None = None
) -> Iterator[Running]:
    """A command that serves until the block ends; it has to be given ``--json`` and to print one line when ready.
    ``descriptors``: how many it may have (RLIMIT_NOFILE)."""
    limited = ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors is not None else []
    process = subprocess.Popen(
        [*limited, sys.executable, "-m", "sidecar", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    alarm = threading.Timer(START_TIMEOUT_S, process.kill)
    alarm.start()
    line = process.stdout.readline()
    alarm.cancel()
    try:
        if not line:
            process.wait(STOP_TIMEOUT_S)
            reader.join(1)
            raise AssertionError(f"exit code {process.returncode}: {b''.join(errors).decode()}")
        yield Running(process, json.loads(line), errors=errors)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
        reader.join(1)
        process.stderr.close()
