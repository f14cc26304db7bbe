"""The hostile runs at a small scale: that they attack, that honest callers are served, and what is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.hostile.__main__ import Outcome
from loadtests.hostile.attacks import ATTACKS


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_callers_are_served_while_others_attack(attack: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    arguments = (
        "--seconds", "1", "--lead", "0.5", "--sockets", "20", "--packets", "200", "--rate", "40", "--json", str(found)
    )  # fmt: skip
    command = [sys.executable, "-m", "loadtests.hostile", attack, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 3), done.stderr  # 3: a p99 on a busy machine
    [row] = json.loads(found.read_text())
    assert (row["attack"], row["good"], row["asked"]) == (attack, 40, 40)
    assert attack in done.stdout


def test_a_bar_that_is_missed_is_named() -> None:
    good = Outcome("a", 10, 10, {}, 1.0, 10.0, 1.0, 30.0, 100.0, {}, {})
    assert (good.ratio, good.holds) == (3.0, True)
    assert not Outcome("a", 10, 9, {}, 1.0, 10.0, 1.0, 10.0, 100.0, {}, {}).holds
    assert not Outcome("a", 10, 10, {}, 1.0, 10.0, 1.0, 31.0, 100.0, {}, {}).holds
    assert not Outcome("a", 10, 10, {}, 1.0, 10.0, 1.0, 10.0, 257.0, {}, {}).holds
    assert Outcome("a", 10, 10, {}, 0.1, 0.1, 1.0, 3.0, 100.0, {}, {}).holds  # noise
