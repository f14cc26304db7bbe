"""Whatever happens to servers, network, clocks and processes, the books are right once it is over.

``SCHEDULES`` seeds from ``SCHEDULES_SEED`` on are tried; ``make chaos`` tries ten thousand.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.simulation.schedule import Schedule, draw, shrunk
from tests.simulation.world import run

SCHEDULES = int(os.environ.get("SCHEDULES", "300"))
FIRST = int(os.environ.get("SCHEDULES_SEED", "1"))
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


@pytest.mark.parametrize("part", range(PARTS))
def test_the_books_are_right_after_any_course_of_events(part: int) -> None:
    for seed in range(FIRST + part, FIRST + SCHEDULES, PARTS):
        schedule = draw(seed)
        if wrong := outcome(schedule):
            smallest = shrunk(schedule, lambda less: bool(outcome(less)))
            pytest.fail(f"{wrong}\n{smallest}\nwith it: {outcome(smallest)}", pytrace=False)
