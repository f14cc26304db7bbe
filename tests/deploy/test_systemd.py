"""The units for plain Linux: what they start, how they stop it, what they let it do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.app.configuration import Command, Config, load_config
from sidecar.app.serve import drain_s_max
from tests.deploy.manifests import DEPLOY
from tests.deploy.test_chart import parse

UNITS = DEPLOY / "systemd"
COMMANDS: dict[str, Command] = {"quota-gateway": "run", "quota-control-plane": "control"}
SUPERVISOR_GRACE_S = 10
"""What a parent of several workers gives them beyond their drain."""
EXPOSURE_MAX = 25
"""Tenths of systemd's measure from 0 (locked up) to 10 (may do anything)."""
PROGRAM = "/opt/quota-sidecar/bin/sidecar"
ANALYZE = shutil.which("systemd-analyze")


def settings(unit: str) -> list[tuple[str, str]]:
    """Pairs of a unit's sections in their order, without comments."""
    lines = (UNITS / f"{unit}.service").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#["]
    assert all(separator for _, separator, _ in pairs)
    return [(name, value) for name, _, value in pairs]


def of(unit: str, name: str) -> list[str]:
    return [value for each, value in settings(unit) if each == name]


def configuration(unit: str, directory: Path) -> Config:
    """What the unit's process reads, with its secrets at hand."""
    environment = {}
    for pair in of(unit, "Environment"):
        name, _, value = pair.partition("=")
        environment[name] = value.replace("%d", str(directory))
    for credential in of(unit, "LoadCredential"):
        (directory / credential.partition(":")[0]).write_text("0123456789abcdef\n")
    return load_config(UNITS / "gateway.yaml", environment, command=COMMANDS[unit])


@pytest.mark.parametrize("unit", COMMANDS)
def test_a_unit_starts_a_command_of_the_program(unit: str) -> None:
    (line,) = of(unit, "ExecStart")
    program, *arguments = line.split()
    assert program == PROGRAM
    parse(arguments, unit)
    assert arguments == [COMMANDS[unit], "-c", "/etc/quota-sidecar/gateway.yaml"]


@pytest.mark.parametrize("unit", COMMANDS)
def test_the_configuration_beside_the_units_is_valid_with_their_variables(unit: str, tmp_path: Path) -> None:
    config = configuration(unit, tmp_path)
    assert config.admin.port == {"run": 9090, "control": 9091}[COMMANDS[unit]]
    assert config.metering.url is not None
    (about,) = re.findall(r"^# (The .*)$", (UNITS / f"{unit}.service").read_text(), re.MULTILINE)
    assert f"{config.admin.host}:{config.admin.port}" in about


@pytest.mark.parametrize("unit", COMMANDS)
def test_every_secret_is_a_credential_that_the_process_is_told_of(unit: str) -> None:
    credentials = {each.partition(":")[0] for each in of(unit, "LoadCredential")}
    told = {each.rpartition("/")[2] for each in of(unit, "Environment")}
    assert credentials == told
    assert all(each.startswith(f"{name}:/etc/quota-sidecar/secrets/{name}") for name in credentials
               for each in of(unit, "LoadCredential") if each.startswith(f"{name}:"))  # fmt: skip


@pytest.mark.parametrize("unit", COMMANDS)
def test_systemd_waits_until_a_drain_is_over(unit: str, tmp_path: Path) -> None:
    assert of(unit, "KillSignal") == ["SIGTERM"]
    assert of(unit, "KillMode") == ["mixed"], "a second SIGTERM, from systemd, would end a worker at once"
    (seconds,) = of(unit, "TimeoutStopSec")
    assert int(seconds) >= drain_s_max(configuration(unit, tmp_path)) + SUPERVISOR_GRACE_S


@pytest.mark.parametrize("unit", COMMANDS)
def test_a_mistake_in_the_configuration_is_not_tried_again(unit: str) -> None:
    assert of(unit, "Restart") == ["on-failure"]
    assert of(unit, "RestartPreventExitStatus") == ["2"]


def test_the_units_let_their_processes_do_the_same() -> None:
    differ = {"Description", "ExecStart", "LoadCredential", "Environment", "EnvironmentFile", "StateDirectory"}
    gateway, control = ([pair for pair in settings(unit) if pair[0] not in differ] for unit in COMMANDS)
    assert gateway == control


if ANALYZE is not None:

    @pytest.fixture
    def installed(tmp_path: Path) -> Path:
        """The units where their program is: one that does nothing, since nothing is started."""
        program = tmp_path / "sidecar"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        for unit in COMMANDS:
            text = (UNITS / f"{unit}.service").read_text()
            (tmp_path / f"{unit}.service").write_text(text.replace(PROGRAM, str(program)))
        return tmp_path

    @pytest.mark.parametrize("unit", COMMANDS)
    def test_systemd_has_nothing_to_say_against_a_unit(unit: str, installed: Path) -> None:
        assert ANALYZE is not None
        done = subprocess.run(
            [ANALYZE, "verify", "--man=no", "--recursive-errors=no", str(installed / f"{unit}.service")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("unit", COMMANDS)
    def test_a_unit_leaves_little_open(unit: str, installed: Path) -> None:
        assert ANALYZE is not None
        done = subprocess.run(
            [ANALYZE, "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE_MAX}",
             str(installed / f"{unit}.service")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

else:

    @pytest.mark.skip(reason="systemd-analyze is not installed")
    def test_systemd_has_nothing_to_say_against_a_unit() -> None:
        """The other tests of this file have parsed the units."""
