"""Manifests as people have them, and what becomes of them. ``UPDATE_GOLDEN=1`` writes the expected ones anew; they are
to be read before they are committed."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sidecar.app.configuration import load_config
from sidecar.kubernetes import injection, names
from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.manifests import inject_text
from sidecar.kubernetes.workloads import look, workloads

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path for path in GOLDEN.glob("*.yaml") if not path.name.endswith(".expected.yaml"))
NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
OLD = "# kubernetes: 1.28\n"
SETTINGS = replace(InjectionSettings(), image="registry.example/quota-sidecar:1.0")

cases = pytest.mark.parametrize("case", CASES, ids=[path.stem for path in CASES])


@pytest.fixture(autouse=True)
def _version_of_the_expected_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the project, so that a release changes no expected manifest."""
    monkeypatch.setattr(injection, "__version__", "1.0")


@cache
def done(case: Path) -> tuple[str, str]:
    """The text and the text with the sidecars. What is warned of stands at the end, as comments."""
    text = case.read_bytes().decode()
    outcome = inject_text(text, replace(SETTINGS, native=not text.startswith(OLD)), case.name)
    assert not outcome.refused, outcome.refused
    return text, outcome.text + "".join(f"# warning: {warning}\n" for warning in outcome.warnings)


def documents(text: str) -> list[Any]:
    return [each for each in yaml.safe_load_all(text) if each is not None]


def objects(text: str) -> list[Any]:
    return [each for one in documents(text) for each in (one["items"] if one["kind"] == "List" else [one])]


@cases
def test_a_manifest_becomes_what_is_expected_of_it(case: Path) -> None:
    _, made = done(case)
    expected = case.with_name(f"{case.stem}.expected.yaml")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        expected.write_bytes(made.encode())
    assert made == expected.read_bytes().decode()


@cases
def test_what_was_injected_is_valid_for_kubernetes(case: Path) -> None:
    text, made = done(case)
    for version in ("1.28", NEWEST) if text.startswith(OLD) else ("1.29", NEWEST):
        for document in objects(made):
            kubernetes_validate.validate(document, version, strict=True)


@cases
def test_injecting_twice_is_injecting_once(case: Path) -> None:
    text, made = done(case)
    again = inject_text(made, replace(SETTINGS, native=not text.startswith(OLD)), case.name)
    assert (again.text, again.injected, again.refused) == (made, [], [])


@cases
def test_lines_that_are_not_the_sidecar_s_business_stay_byte_for_byte(case: Path) -> None:
    text, made = done(case)
    if case.stem == "manifest.json":
        return
    kept = set(made.splitlines(keepends=True))
    lost = [line for line in text.splitlines(keepends=True) if line not in kept]
    # What remains is what a port's name, a label, an annotation, or a list in one line needs.
    touched = (
        "name: ", "port: ", "labels", "annotations", "containerPort", "containers: [", "metadata", "httpGet",
        "tcpSocket", "grpc", "path: ", "scheme", "httpHeaders", "value: ",
    )  # fmt: skip
    assert not [line for line in lost if not any(word in line for word in touched)]
    assert len(lost) <= len(text.splitlines()) / 2


@cases
def test_every_variable_of_the_sidecar_is_a_setting_that_it_knows(case: Path, tmp_path: Path) -> None:
    _, made = done(case)
    file = tmp_path / "gateway.yaml"
    file.write_text("valkey: valkey://valkey\n")
    found = 0
    for document in objects(made):
        for workload in workloads(document):
            spec = look(document, workload.path)["spec"]
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                if container["name"] == names.CONTAINER:
                    environment = {each["name"]: each.get("value", "10.0.0.9") for each in container["env"]}
                    config = load_config(file, environment, command="run")
                    assert config.health.port == names.HEALTH_PORT
                    assert config.admin.port == names.ADMIN_PORT
                    found += 1
    assert found
