"""Signals at any moment of start and stop leave no server and no directory behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import STOP_TIMEOUT_S

SEED = int(os.environ.get("TEST_SEED", "17"))
ROUNDS = int(os.environ.get("TEST_ROUNDS", "2"))
"""Of each command. Who changes how a process ends tries many, with several values of TEST_SEED."""
BEGINS_S = 30.0
WHOLE_START_S = 2.0
"""About what a start takes; the moments are drawn from it."""


@dataclass
class Started:
    """A command of which all files for a while are in ``directory``. Its log is in a file there, beside them."""

    process: subprocess.Popen[bytes]
    directory: Path
    errors: Path

    def until_begun(self) -> None:
        """Until it has made something that could stay behind."""
        self._until(lambda: any(self.directory.iterdir()), "it begins")

    def until_launched(self) -> None:
        self._until(lambda: any(self.directory.rglob("server")), "a server is launched")

    def until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), self.errors.read_text()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + BEGINS_S
        while not condition():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, what
            time.sleep(0.002)

    def send(self, *numbers: signal.Signals, within_s: float = 0.0) -> None:
        for number in numbers:
            if self.process.poll() is None:
                self.process.send_signal(number)
            time.sleep(within_s)

    def ended(self) -> int:
        """Its exit code; nothing may have stayed."""
        code = self.process.wait(STOP_TIMEOUT_S)
        servers = servers_of(self.directory)
        left = [str(path.relative_to(self.directory)) for path in self.directory.iterdir()]
        said = self.errors.read_text()
        assert (servers, [name for name in left if name != "data"]) == ([], []), said
        assert "Traceback" not in said, said
        assert "never retrieved" not in said, said
        return code


def servers_of(directory: Path) -> list[int]:
    """Processes that have a file below this directory open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(f"{directory}/") for link in links):
            found.append(int(process.name))
    return found


@pytest.fixture(params=["demo", "run", "workers", "control"])
def command(request: pytest.FixtureRequest, tmp_path: Path, directory: Path) -> list[str]:
    return _command(request.param, tmp_path, directory)


def _command(name: str, tmp_path: Path, directory: Path) -> list[str]:
    if name == "demo":
        return ["demo", "--json", "--proxy-port", "0", "--admin-port", "0"]
    document = {
        "listen": {"host": "127.0.0.1", "port": 0, "workers": 2 if name == "workers" else 1},
        "upstream": {"url": "http://127.0.0.1:9"},
        "metering": {"url": "http://127.0.0.1:9"},
        "valkey": f"embedded://{directory}/data",
        "admin": {"port": 0},
        "log": {"level": "warning"},
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(document))
    return ["control" if name == "control" else "run", "-c", str(path), "--json"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """For what is there for a while. Its path is short, since there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="q-") as path:
        yield Path(path)


@pytest.fixture
def start(tmp_path: Path, directory: Path) -> Iterator[Callable[[list[str]], Started]]:
    errors = tmp_path / "errors"
    processes: list[subprocess.Popen[bytes]] = []

    def begin(arguments: list[str]) -> Started:
        with errors.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", *arguments],
                stdout=subprocess.PIPE, stderr=log, env={**os.environ, "TMPDIR": str(directory)},
            )  # fmt: skip
        processes.append(process)
        return Started(process, directory, errors)

    try:
        yield begin
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in servers_of(directory):
            os.kill(pid, signal.SIGKILL)


PAIRS = (
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGHUP,),
    (signal.SIGHUP, signal.SIGHUP),
    (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),
)


@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_signals_while_it_starts_leave_nothing(
    command: list[str], start: Callable[[list[str]], Started], round_number: int
) -> None:
    draw = random.Random(f"{SEED} {command[0]} {len(command)} {round_number}")
    numbers = draw.choice(PAIRS)
    started = start(command)
    if round_number % 2:
        started.until_launched()
        time.sleep(draw.uniform(0, 0.05))
    else:
        started.until_begun()
        time.sleep(draw.uniform(0, WHOLE_START_S))
    started.send(*numbers, within_s=draw.uniform(0, 0.05))
    assert started.ended() in (0, 130, *(-number for number in numbers)), started.errors.read_text()


@pytest.mark.parametrize("numbers", PAIRS[:3], ids=lambda numbers: "+".join(number.name for number in numbers))
@pytest.mark.parametrize("name", ["demo", "run"])
def test_signals_when_it_serves_leave_nothing(
    tmp_path: Path,
    directory: Path,
    start: Callable[[list[str]], Started],
    name: str,
    numbers: tuple[signal.Signals, ...],
) -> None:
    draw = random.Random(f"{SEED} {name} {numbers}")
    started = start(_command(name, tmp_path, directory))
    started.until_ready()
    started.send(*numbers, within_s=draw.uniform(0, 0.05))
    code = started.ended()
    assert code == 0 or (len(numbers) > 1 and code in (130, *(-number for number in numbers)))


def test_a_command_that_is_told_to_end_stops_the_server_that_it_started(
    tmp_path: Path, directory: Path, start: Callable[[list[str]], Started]
) -> None:
    _command("run", tmp_path, directory)
    started = start(["check", "-c", str(tmp_path / "gateway.yaml")])
    started.until_launched()
    started.send(signal.SIGTERM)
    assert started.ended() in (0, 1, -signal.SIGTERM)


def test_a_hang_up_that_is_ignored_stays_ignored(
    tmp_path: Path, directory: Path, start: Callable[[list[str]], Started]
) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        started = start(_command("run", tmp_path, directory))
    finally:
        signal.signal(signal.SIGHUP, before)
    started.until_ready()
    started.send(signal.SIGHUP)
    time.sleep(0.2)
    assert started.process.poll() is None
    started.send(signal.SIGTERM)
    assert started.ended() == 0
