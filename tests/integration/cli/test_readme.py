"""The README's commands take the arguments that it shows, its examples load, the settings that it names exist.

Its blocks are run, and its links are followed, in tests/docs.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sidecar.app.configuration import load_config
from sidecar.app.schema_rows import schema_rows
from sidecar.ledger.accounts.accounts_file import load_accounts
from tests.support.processes import sidecar

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
SHELL = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("sidecar ")])
def test_a_command_takes_the_arguments_that_are_shown(line: str) -> None:
    words = shlex.split(line)[1:]
    names = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    options = {word for word in words if word.startswith("-")}
    helped = sidecar(*names, "--help")
    assert helped.returncode == 0, helped.stderr
    assert all(option in helped.stdout for option in options)


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
