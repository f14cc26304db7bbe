"""Every command of the documentation is executed, and prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import ROOT, Block, blocks, matches, pages

EVERY = [block for page in pages() for block in blocks(page)]
SHELL = [block for block in EVERY if block.language == "sh"]
BASH = shutil.which("bash") or "/bin/bash"
TIMEOUT_S = 300.0
HERE = ("", "stays")
README = "README.md"
PORTS = (8000, 8080, 9090)
TOOLS = {"compare": ("wrk", "nginx"), "scaling": ("wrk",), "billing-scale": (), "load-steady": ()}
"""Programs of the system that ``make`` targets need. Where one is missing, the test is skipped and names it."""
SMALL = {
    "COMPARE_ARGS": "--rounds 1 --seconds 1 --connections 1",
    "SCALING_ARGS": "accounts --quick",
    "BILLING_SCALE_ARGS": "--accounts 100 --days 1",
    "LOAD_ARGS": "--users 4 --seconds 3",
}


def environment(*, installed: bool = False) -> dict[str, str]:
    """The tests' environment without what concerns the tests' own program, unless a page takes it for installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "QUOTA_SIDECAR"))}
    kept.pop("PYTHONPATH", None)
    kept.pop("PYTHONSAFEPATH", None)
    kept.pop("VIRTUAL_ENV", None)
    programs = Path(sys.executable).parent
    path = [part for part in kept["PATH"].split(os.pathsep) if Path(part) != programs]
    return {**kept, "PATH": os.pathsep.join([str(programs)] * installed + path)}


class Shell:
    """One bash for a page: variables, directories and background jobs stay from block to block."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._out = directory / "out"
        self._process = subprocess.Popen(
            [BASH, "--noprofile", "--norc"], cwd=directory / "work", env=env, stdin=subprocess.PIPE,
            stdout=self._out.open("wb"), stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, text: str) -> tuple[int, str]:
        """What it exits with, and what it printed."""
        assert self._process.stdin is not None
        begin = self._out.stat().st_size
        mark = f"--end of block {begin}--"
        self._process.stdin.write(f"{text}\nprintf '\\n%s %s\\n' '{mark}' $?\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            printed = self._out.read_bytes()[begin:].decode(errors="replace")
            ended = re.search(rf"\n{mark} (\d+)\n", printed)
            if ended:
                return int(ended[1]), printed[: ended.start()]
            assert self._process.poll() is None, f"the shell ended: {printed[-2000:]}"
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S:g} s: {text}\n{printed[-2000:]}"
            time.sleep(0.05)

    def close(self) -> None:
        """Ends it and whatever it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            time.sleep(1.0 if number is signal.SIGTERM else 0)
        self._process.wait()


def is_taken(port: int) -> bool:
    with socket.socket() as looked:
        return looked.connect_ex(("127.0.0.1", port)) == 0


def until_free(ports: Sequence[int]) -> None:
    """Until the program that was told to end has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(map(is_taken, ports)):
        assert time.monotonic() < deadline, f"still listening at {ports}"
        time.sleep(0.1)


@contextmanager
def shell(page: str) -> Iterator[Shell]:
    """In a copy of the repository, so that what a page makes is gone with it. README installs the program itself."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        directory = Path(name)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        for path in filter(None, listed.split("\0")):
            if (ROOT / path).is_file():
                (directory / "work" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, directory / "work" / path)
        if (ROOT / "build" / "core").is_dir():  # what the sources were compiled to, so that they are not compiled again
            shutil.copytree(ROOT / "build" / "core", directory / "work" / "build" / "core")
        if page != README:
            (directory / "work" / ".venv").symlink_to(Path(sys.executable).parents[1])
        started = Shell(directory, environment(installed=page != README))
        try:
            yield started
        finally:
            started.close()


def stays(session: Shell, block: Block) -> str:
    """Starts what runs until it is stopped; returns what it has printed once it is ready."""
    session.run(f"{block.text.strip()} > stays.log 2>&1 &")
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        running, printed = session.run("cat stays.log; jobs -r | grep -q .")
        if "Ctrl-C" in printed:
            return printed
        assert running == 0, f"{block} ended: {printed[-2000:]}"
        assert time.monotonic() < deadline, f"{block}: not ready: {printed[-2000:]}"
        time.sleep(0.5)


@pytest.mark.parametrize(
    "page", [page for page in pages() if any(b.where in ("", "stays") for b in blocks(page) if b.language == "sh")]
)
def test_a_page_s_commands_work_in_their_order_and_print_what_it_shows(page: str) -> None:
    for port in PORTS if page == README else ():
        if is_taken(port):
            pytest.skip(f"another program has port {port}, which README uses")
    with shell(page) as session:
        demo = False
        for block in blocks(page):
            if block.language != "sh" or block.where not in HERE:
                continue
            if block.where == "stays":
                printed = stays(session, block)
                key = re.search(r"tpp-prepaid +X-API-Key: (\S+)", printed)
                assert key is not None, printed
                session.run(f"KEY={shlex.quote(key[1])}")
                demo = True
                continue
            if demo and "KEY" not in block.text:  # the page has gone on to something else
                session.run("kill %1; wait %1")
                until_free(PORTS)
                demo = False
            status, printed = session.run(block.text)
            assert status == 0, f"{block}:\n{printed}"
            if block.shown is not None:
                assert matches(block.shown, printed), f"{block} shows\n{block.shown}\nprinted is\n{printed}"


@pytest.mark.parametrize("block", [block for block in SHELL if block.where == "tools"], ids=str)
def test_a_measurement_s_command_runs(block: Block) -> None:
    words = block.text.split("#")[0].split()
    missing = [tool for tool in TOOLS[words[1]] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{block.text.strip()} needs {', '.join(missing)}")
    done = subprocess.run(
        words, cwd=ROOT, env={**environment(), **SMALL}, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    # Bars may be missed here, which the program ends with 3 and make with 2: on a busy machine they say nothing.
    ran = done.returncode == 0 or "Error 3" in done.stderr
    assert ran, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_is_correct_shell(block: Block) -> None:
    looked = subprocess.run([BASH, "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert looked.returncode == 0, looked.stderr


@pytest.mark.parametrize("block", [block for block in EVERY if block.language == "yaml"], ids=str)
def test_a_block_of_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text) is not None


def test_ci_runs_what_a_page_calls_the_tests() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    for block in SHELL:
        if block.where == "ci":
            assert block.text.strip() in run


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page: str) -> None:
    source = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", source):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: {target}"
        if heading and place.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
