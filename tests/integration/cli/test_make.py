"""What `make` tells: its targets, and what it is doing while a new user waits."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
MAKE = shutil.which("make")


def make(*arguments: str) -> list[str]:
    assert MAKE is not None
    return subprocess.run(
        [MAKE, "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_help_has_one_line_for_each_target() -> None:
    phony = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for line in phony for name in line.split()}
    lines = [re.fullmatch(r"([a-z-]+)  +(\S.*)", line) for line in make("help")]
    assert all(lines), make("help")
    assert sorted(line[1] for line in lines if line) == sorted(targets)
    starts = {line.start(2) for line in lines if line}
    assert len(starts) == 1, "the texts stand below each other"


def test_make_alone_shows_the_help() -> None:
    assert make() == make("help")


def test_each_step_of_an_installation_is_announced(tmp_path: Path) -> None:
    """Without the installation itself, which takes a minute and the network."""
    steps = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}")
    said = [line for line in steps if line.startswith("echo ")]
    assert said[0].startswith("echo 'Creating the virtual environment")
    assert said[1].startswith("echo 'Installing quota-sidecar into")
    assert said[-1] == "echo 'Starting the demo.'"
    for line, command in ((said[0], "-m venv"), (said[1], "pip install"), (said[-1], "sidecar demo")):
        assert command in "\n".join(steps[steps.index(line) + 1 :][:3])


def test_pip_shows_its_progress_where_somebody_watches(tmp_path: Path) -> None:
    steps = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}")
    (install,) = [line for line in steps if "pip install" in line]
    script = install.replace(f"{tmp_path / 'venv'}/bin/python", "echo").replace("set -x;", "")
    on_a_pipe = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert "--quiet" in on_a_pipe
    ours, theirs = pty.openpty()
    subprocess.run(["sh", "-c", script], stdout=theirs, check=True)
    on_a_terminal = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert "pip install --editable ." in on_a_terminal
    assert "--quiet" not in on_a_terminal
