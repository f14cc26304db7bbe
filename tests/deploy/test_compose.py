"""The compose file: its services, commands, ports, variables and files are those of the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.app.configuration import Command, Config, load_config
from sidecar.app.schema_rows import schema_rows
from sidecar.app.serve import drain_s_max
from sidecar.config.environment import variable
from tests.deploy.manifests import DEPLOY
from tests.deploy.test_chart import parse

COMPOSE = DEPLOY / "compose"
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: dict[str, Any] = FILE["services"]
COMMANDS: dict[str, Command] = {"gateway": "run", "control-plane": "control"}
of_both = pytest.mark.parametrize("service", COMMANDS)


def configuration(service: str, directory: Path) -> Config:
    """What the service's process reads, with its secrets in ``directory``."""
    for secret in SERVICES[service]["secrets"]:
        (directory / secret).write_text("0123456789abcdef\n")
    environment = {
        name: str(value).replace("/run/secrets", str(directory))
        for name, value in SERVICES[service]["environment"].items()
    }
    return load_config(COMPOSE / "gateway.yaml", environment, command=COMMANDS[service])


def test_there_are_valkey_a_gateway_and_a_control_plane() -> None:
    assert set(SERVICES) == {"valkey", *COMMANDS}


@of_both
def test_a_service_runs_a_command_of_the_program_on_the_mounted_configuration(service: str) -> None:
    arguments = SERVICES[service]["command"]
    parse(arguments, service)
    assert arguments[0] == COMMANDS[service]
    assert SERVICES[service]["environment"]["SIDECAR_CONFIG"] == arguments[2], "for commands without -c"
    source, target, mode = SERVICES[service]["volumes"][0].split(":")
    assert (target, mode) == (arguments[2], "ro")
    assert (COMPOSE / source).is_file()


@of_both
def test_every_variable_is_a_setting_and_the_configuration_is_valid_with_them(service: str, tmp_path: Path) -> None:
    known = {"SIDECAR_CONFIG", *(variable(row.path) for row in schema_rows())}
    assert set(SERVICES[service]["environment"]) <= known
    assert str(configuration(service, tmp_path).valkey) == "valkey://valkey:6379/0"


@of_both
def test_a_service_s_ports_are_those_that_its_process_listens_on(service: str, tmp_path: Path) -> None:
    config = configuration(service, tmp_path)
    inside = {int(str(port).rpartition(":")[2]) for port in SERVICES[service]["ports"]}
    assert inside == ({config.listen.port} if service == "gateway" else set()) | {config.admin.port}
    assert f":{config.admin.port}/readyz" in SERVICES[service]["healthcheck"]["test"][-1]
    assert config.admin.host == "0.0.0.0", "Docker passes connections to a container's address, not to its loopback"


@of_both
def test_every_secret_comes_from_a_file_and_the_process_is_told_where(service: str) -> None:
    named = {value.rpartition("/")[2] for name, value in SERVICES[service]["environment"].items() if "_FILE" in name}
    assert named == set(SERVICES[service]["secrets"])
    assert set(SERVICES[service]["secrets"]) <= set(FILE["secrets"])
    assert "secrets/" in (COMPOSE / ".gitignore").read_text().split()
    assert all(secret["file"].startswith("secrets/") for secret in FILE["secrets"].values())


@of_both
def test_docker_waits_until_a_drain_is_over(service: str, tmp_path: Path) -> None:
    assert SERVICES[service]["stop_signal"] == "SIGTERM"
    grace = SERVICES[service]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= drain_s_max(configuration(service, tmp_path)) + 10


@of_both
def test_a_service_may_do_nothing_that_it_does_not_need(service: str) -> None:
    given = SERVICES[service]
    assert (given["read_only"], given["cap_drop"]) == (True, ["ALL"])
    assert given["security_opt"] == ["no-new-privileges:true"]


def test_valkey_keeps_what_was_debited_and_deletes_nothing() -> None:
    command = SERVICES["valkey"]["command"][-1]
    for setting in ("--appendonly yes", "--maxmemory-policy noeviction", "--requirepass"):
        assert setting in command
    assert SERVICES["valkey"]["volumes"] == ["valkey:/data"]
    assert "valkey" in FILE["volumes"]
    assert "ports" not in SERVICES["valkey"]


def test_the_images_are_those_of_the_platform_and_of_the_dockerfile() -> None:
    assert SERVICES["valkey"]["image"] in (DEPLOY / "platform" / "valkey.yaml").read_text()
    build = SERVICES["gateway"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == (DEPLOY / "Dockerfile").resolve()
    path = re.search(r"PATH=(\S+):\$PATH", (DEPLOY / "Dockerfile").read_text())
    assert path is not None, "where the health checks' python is"
