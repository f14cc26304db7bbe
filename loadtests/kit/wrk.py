"""wrk (Will Glozer's HTTP benchmark, in C) as the load generator: connections, each with one request under way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtests.kit.processes import RigError

REPORT = Path(__file__).with_name("wrk_report.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one run: ``answers`` are whole responses, ``refused`` those of them with a status of 400 and more,
    ``broken`` counts connections that failed."""

    seconds: float
    answers: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float


def find() -> str | None:
    return shutil.which("wrk")


def load(
    url: str,
    *,
    connections: int,
    seconds: int,
    fields: dict[str, str] | None = None,
    script: Path = REPORT,
    env: dict[str, str] | None = None,
) -> Load:
    """Runs wrk with one thread against ``url``.

    ``script`` makes its requests, with ``env`` in its environment; it has to run ``REPORT``, which is in there too.

    Raises:
        RigError: wrk is missing or failed.
    """
    program = find()
    if program is None:
        raise RigError("wrk is not installed")
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
    for name, value in (fields or {}).items():
        command += ["-H", f"{name}: {value}"]
    environment = {**os.environ, "REPORT": str(REPORT), **(env or {})}
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    if done.returncode or line is None:
        raise RigError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return Load(**json.loads(line))
