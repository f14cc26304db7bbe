"""The kustomizations: they can be built, Kubernetes takes them, and what they share with the chart is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.kustomize.__main__ import HERE, written
from sidecar.app.configuration import load_config
from tests.deploy.manifests import IMAGE, KUSTOMIZATIONS, chart, kustomization, named, of_kind, pods
from tests.deploy.schemas import VERSIONS, Manifest, faults

SECRETS_DIRECTORY = "/etc/quota-sidecar-secrets"
INJECTOR = "quota-sidecar-injector"


def test_what_is_made_from_the_chart_is_what_the_chart_makes() -> None:
    for path, text in written().items():
        assert path.read_text() == text, f"{path.relative_to(HERE)}: run python -m deploy.kustomize"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_kubernetes_takes_what_a_kustomization_makes(name: str, version: str) -> None:
    assert [fault for document in kustomization(name) for fault in faults(document, version)] == []


def test_the_base_has_the_objects_of_the_chart_and_their_namespace() -> None:
    def objects(documents: tuple[Manifest, ...]) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in documents if each["kind"] != "ConfigMap"}

    assert objects(kustomization("kustomize/base")) == objects(chart("defaults")) | {("Namespace", "quota-system")}
    assert specs(kustomization("kustomize/base")) == specs(chart("defaults"))


def test_no_mark_of_a_helm_release_is_left() -> None:
    for each in kustomization("kustomize/base"):
        assert not [key for key in each["metadata"].get("labels", {}) if "helm" in key or key.endswith("managed-by")]


def test_a_namespace_takes_the_data_plane_with_its_settings_and_its_policy() -> None:
    documents = kustomization("kustomize/data-plane")
    settings = named(documents, "ConfigMap", "quota-sidecar")
    assert (
        settings["data"]["gateway.yaml"].split("\n", 1)[1]
        == (named(chart("defaults"), "ConfigMap", "quota-sidecar")["data"]["gateway.yaml"])
    )
    assert {each["kind"] for each in documents} == {"ConfigMap", "NetworkPolicy"}
    assert not [each for each in documents if "namespace" in each["metadata"]], "it goes wherever it is taken"


def test_a_development_overlay_has_one_of_each_and_needs_no_secret(tmp_path: Path) -> None:
    documents = kustomization("kustomize/overlays/dev")
    assert {each["spec"]["replicas"] for each in of_kind(documents, "Deployment")} == {1}
    assert of_kind(documents, "PodDisruptionBudget") == []
    for about, pod in pods(documents):
        secrets = [volume["secret"] for volume in pod["spec"].get("volumes", []) if "secret" in volume]
        assert all(each.get("optional") for each in secrets), about
    config = config_of(documents, tmp_path)
    assert SECRETS_DIRECTORY not in config
    valkey = named(documents, "Service", "valkey")
    assert f"valkey://{valkey['metadata']['name']}.{valkey['metadata']['namespace']}.svc:6379" in config
    entries = named(documents, "MutatingWebhookConfiguration", INJECTOR)["webhooks"]
    assert {each["failurePolicy"] for each in entries} == {"Ignore"}


def test_a_production_overlay_has_three_of_each_behind_policies_and_one_version_of_everything(tmp_path: Path) -> None:
    documents = kustomization("kustomize/overlays/production")
    deployments = of_kind(documents, "Deployment")
    assert {each["spec"]["replicas"] for each in deployments} == {3}
    images = {pod["spec"]["containers"][0]["image"] for _, pod in pods(documents)}
    [injector] = [each for each in deployments if each["metadata"]["name"] == INJECTOR]
    environment = injector["spec"]["template"]["spec"]["containers"][0]["env"]
    assert images == {each["value"] for each in environment if each["name"] == "QUOTA_INJECTOR_IMAGE"}
    assert all(each.startswith(f"{IMAGE}:") for each in images)
    assert len(of_kind(documents, "NetworkPolicy")) == len(deployments)
    assert {each["kind"] for each in documents} >= {"ServiceMonitor", "PodMonitor", "PodDisruptionBudget"}
    assert "sentinel" in config_of(documents, tmp_path)


def specs(documents: tuple[Manifest, ...]) -> dict[tuple[str, str], object]:
    """Everything below the metadata; names with a hash and what is for Helm's own use are left out."""
    found = {}
    for each in documents:
        if each["kind"] in ("ConfigMap", "Namespace"):
            continue
        content = {key: value for key, value in each.items() if key != "metadata"}
        text = yaml.safe_dump(content)
        for part in [line for line in text.splitlines() if "checksum/config" in line or line.strip() == "annotations:"]:
            text = text.replace(part + "\n", "")
        hashed = [each["metadata"]["name"] for each in of_kind(documents, "ConfigMap")]
        for name in hashed:
            if name.startswith("quota-sidecar-control"):
                text = text.replace(f"name: {name}\n", "name: quota-sidecar-control\n")
        found[each["kind"], each["metadata"]["name"]] = yaml.safe_load(text)
    return found


def config_of(documents: tuple[Manifest, ...], directory: Path) -> str:
    """The control plane's settings, after its program has read them."""
    [made] = [each for each in of_kind(documents, "ConfigMap") if "-control" in each["metadata"]["name"]]
    text = str(made["data"]["gateway.yaml"])
    for key in ("valkey-password", "lago-api-key", "lago-webhook-hmac-key", "admin-token"):
        (directory / key).write_text("0123456789abcdef")
    path = directory / "gateway.yaml"
    path.write_text(text.replace(SECRETS_DIRECTORY, str(directory)))
    assert load_config(path, {}).metering.url is not None
    return text
