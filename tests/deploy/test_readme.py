"""deploy/README.md says what is so: names, ports, defaults, files, commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from deploy.chart.values import leaves, read_values
from sidecar.cli import build
from sidecar.kubernetes import names
from sidecar.kubernetes.injection_options import InjectionSettings
from tests.deploy.manifests import DEPLOY, EVERYTHING, KUSTOMIZATIONS, chart, named

README = (DEPLOY / "README.md").read_text()
VALUES = (DEPLOY / "chart" / "quota-sidecar" / "values.yaml").read_text()

FILES = re.findall(r"\]\(([^)#]+)\)|`?(?:-f|--values|-k) ((?:deploy|examples)/[^\s`]+)", README)
CODE = re.findall(r"```sh[a-z ]*\n(.*?)```|`([^`\n]+)`", README, re.DOTALL)
COMMANDS = re.findall(r"(?:^|-- |\s)sidecar ([a-z]+(?: (?:show|diff|apply))?)", "\n".join(a or b for a, b in CODE))
_SECTIONS = "injector|networkPolicy|dataPlane|gateway|image|monitoring|secrets"
NAMED_VALUES = re.findall(rf"`((?:{_SECTIONS})\.(?!yaml)[A-Za-z.]+)", README)


def rows(mark: str) -> dict[str, list[str]]:
    """A table between two marks, by its first column."""
    table = README.split(f"<!-- {mark}: begin -->")[1].split(f"<!-- {mark}: end -->")[0]
    found = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip("| `"): [cell.rstrip(" |") for cell in cells[1:]] for cells in found}


def test_every_annotation_is_in_the_table_and_nothing_else() -> None:
    assert list(rows("annotations")) == list(names.ANNOTATIONS)


def test_labels_and_status_are_explained() -> None:
    assert list(rows("labels")) == [names.INJECT, names.INJECTED]
    assert f"`{names.STATUS}`" in README


def test_defaults_of_annotations_are_those_of_the_injection() -> None:
    usual, table = InjectionSettings(), rows("annotations")
    expected = {
        names.CONFIG: usual.config_map, names.SECRET: usual.secret, names.IMAGE_PULL_POLICY: usual.image_pull_policy,
        names.CPU_REQUEST: usual.cpu_request, names.MEMORY_REQUEST: usual.memory_request,
        names.CPU_LIMIT: usual.cpu_limit or "none", names.MEMORY_LIMIT: usual.memory_limit,
        names.DRAIN_SECONDS: str(usual.drain_s), names.METRICS: str(usual.metrics).lower(),
    }  # fmt: skip
    assert {name: table[name][0].strip('`"') for name in expected} == expected


def test_the_chart_gives_sidecars_the_defaults_of_the_injection() -> None:
    usual = InjectionSettings()
    arguments = named(chart("defaults"), "Deployment", "quota-sidecar-injector")["spec"]["template"]["spec"][
        "containers"
    ][0]
    given = dict(each.removeprefix("--").split("=", 1) for each in arguments["args"] if "=" in each)
    assert given["config"] == usual.config_map
    assert given["config-secret"] == usual.secret
    assert (given["cpu-request"], given["memory-request"]) == (usual.cpu_request, usual.memory_request)
    assert (given["cpu-limit"], given["memory-limit"]) == (usual.cpu_limit or "none", usual.memory_limit or "none")


@pytest.mark.parametrize("path", sorted(set(FILES)))
def test_every_file_that_it_names_is_there(path: tuple[str, str]) -> None:
    link, argument = path
    place = DEPLOY / link if link else DEPLOY.parent / argument
    assert place.exists()
    if argument and place.is_dir():
        assert str(place.relative_to(DEPLOY)) in KUSTOMIZATIONS


def test_every_link_within_leads_to_a_heading() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_that_it_names_exists(command: str) -> None:
    below: Any = typer.main.get_command(build([]))
    for word in command.split():
        assert word in below.commands
        below = below.commands[word]


@pytest.mark.parametrize("value", sorted(set(NAMED_VALUES)))
def test_every_value_that_it_names_is_one_of_the_chart(value: str) -> None:
    paths = {".".join(each.path) for each in leaves(read_values(VALUES))}
    assert any(path == value or path.startswith(f"{value}.") for path in paths)


def test_ports_are_those_that_are_opened() -> None:
    last = names.PROXY_PORT + names.PROXY_PORTS_MAX - 1
    assert f"{names.PROXY_PORT} to {last}" in README
    assert f"port {names.HEALTH_PORT}" in README


def test_a_sidecar_s_requests_and_limits_leave_room_for_what_was_measured() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) m \| \d+ m \| (\d+) MB \|", README, re.MULTILINE)
    assert [rate for rate, *_ in rows] == ["10", "100", "500", "1,000", "2,000"]
    usual = InjectionSettings()
    assert all(int(memory) * 10**6 < int(usual.memory_request.removesuffix("Mi")) * 2**20 for *_, memory in rows)
    assert int(rows[1][1]) < int(usual.cpu_request.removesuffix("m")), "what is asked for is enough for 100 a second"


def test_secrets_and_their_keys_are_those_of_the_chart() -> None:
    table = README.split("### What each secret opens")[1].split("###")[0]
    listed = set(re.findall(r"^\| `([^`]+)`, `([^`]+)`", table, re.MULTILINE))
    control = named(chart("everything"), "ConfigMap", "quota-sidecar-control")["data"]["gateway.yaml"]
    keys = set(re.findall(r"/etc/quota-sidecar-secrets/(\S+)", control))
    assert listed == {("quota-sidecar-control", key) for key in keys} | {("quota-sidecar", "valkey-password")}
    assert "secrets" in EVERYTHING


def test_the_readme_is_not_far_from_what_fits_a_screen() -> None:
    assert [line for line in README.splitlines() if len(line) > 130 and not line.startswith("|")] == []


def test_the_chart_s_own_readme_names_this_one() -> None:
    assert (DEPLOY / "chart" / "quota-sidecar" / Path("../../README.md")).resolve() == (DEPLOY / "README.md").resolve()
