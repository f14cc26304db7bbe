"""The README says what is: its commands run, its examples load, its tables name what exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.app.configuration import load_config
from sidecar.app.schema_rows import schema_rows
from sidecar.ledger.accounts.accounts_file import load_accounts
from tests.support.processes import Running, running, sidecar

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
SHELL = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json") as started:
        yield started


def test_every_shell_line_is_one_that_is_tested_here_or_in_ci() -> None:
    assert SHELL
    assert {shlex.split(line)[0] for line in SHELL} <= {"make", "curl", "sidecar"}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {shlex.split(line)[1] for line in SHELL if line.startswith("make ")}
    assert targets == {"demo", "test", "compare", "scaling", "load"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("sidecar ")])
def test_a_command_takes_the_arguments_that_are_shown(line: str) -> None:
    words = shlex.split(line)[1:]
    names = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    options = {word for word in words if word.startswith("-")}
    helped = sidecar(*names, "--help")
    assert helped.returncode == 0, helped.stderr
    assert all(option in helped.stdout for option in options)


if CURL is not None:

    @pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("curl ")])
    def test_a_curl_line_gets_what_is_shown(line: str, demo: Running) -> None:
        key = demo.ready["accounts"][0]["api_key"]
        command = line.replace("http://127.0.0.1:8080", demo.ready["proxy"]).replace("$KEY", key)
        out = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True, timeout=30).stdout
        shown = re.search(r"```text\n(HTTP/1\.1 200 OK\n.*?)```", README, re.DOTALL)
        assert shown is not None
        for expected in shown[1].splitlines():
            if expected and expected != "…":
                assert expected in out


def test_the_example_files_are_valid() -> None:
    config = load_config(ROOT / "examples" / "gateway.yaml", {})
    assert config.routes[0].path == "/open-banking/health"
    assert [account.mode for account in load_accounts(ROOT / "examples" / "accounts.yaml")] == [
        "prepaid", "overage", "postpaid",
    ]  # fmt: skip


def test_settings_that_are_named_exist() -> None:
    known = {row.path for row in schema_rows()}
    named = set(re.findall(r"`((?:ledger|limits|upstream|metering|listen|admin)\.[a-z_.]+)`", README))
    assert named
    assert named <= known


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link
