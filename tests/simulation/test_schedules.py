"""Whatever happens to servers, network, clocks and processes, the books are right once it is over.

``SCHEDULES`` seeds from ``SCHEDULES_SEED`` on are tried, with the order of hashes of ``SCHEDULES_HASH_SEED``;
``make chaos`` tries ten thousand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.simulation.schedule import Schedule, draw, shrunk
from tests.simulation.world import run

SCHEDULES = int(os.environ.get("SCHEDULES", "300"))
FIRST = int(os.environ.get("SCHEDULES_SEED", "1"))
HASH_SEED = os.environ.get("SCHEDULES_HASH_SEED", "0")
ROOT = Path(__file__).parents[2]
PARTS = 12
"""Tests that share the schedules, so that several processes can run them."""


def outcome(schedule: Schedule) -> str:
    """What is wrong; "" if nothing is."""
    with tempfile.TemporaryDirectory(prefix="quota-simulation-") as directory:
        try:
            run(schedule, Path(directory) / "spool")
        except AssertionError as error:
            return str(error) or repr(error)
    return ""


def play(part: int) -> str:
    """What is wrong in the first of these courses of events that breaks a rule, made as small as possible."""
    for seed in range(FIRST + part, FIRST + SCHEDULES, PARTS):
        schedule = draw(seed)
        if wrong := outcome(schedule):
            smallest = shrunk(schedule, lambda less: bool(outcome(less)))
            return f"{wrong}\n{smallest}\nwith it: {outcome(smallest)}"
    return ""


@pytest.mark.parametrize("part", range(PARTS))
def test_the_books_are_right_after_any_course_of_events(part: int) -> None:
    """In a process of its own, since the order of hashes is part of a course of events: so that a failure repeats."""
    environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
    command = [sys.executable, "-m", "tests.simulation.test_schedules", str(part)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"PYTHONHASHSEED={HASH_SEED}\n{done.stderr[-8_000:]}", pytrace=False)


if __name__ == "__main__":
    sys.exit(play(int(sys.argv[1])) or 0)
