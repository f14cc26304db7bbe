"""The Helm chart, through Helm itself: Kubernetes takes what it makes, and what it makes fits together."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from deploy.kustomize.__main__ import CHART, NAMESPACE
from sidecar import __version__
from sidecar.app.configuration import Config, load_config
from sidecar.cli import build
from sidecar.kubernetes import names
from tests.deploy.manifests import (
    CONTROL,
    DIGEST,
    EVERYTHING,
    GATEWAY,
    IMAGE,
    INJECTOR,
    KUSTOMIZATIONS,
    SETS,
    chart,
    containers,
    deployment,
    load_all,
    manifests,
    named,
    of_kind,
    pods,
    ports_of,
    run_helm,
    selects,
    template,
)
from tests.deploy.schemas import VERSIONS, Manifest, faults

SECRETS_DIRECTORY = "/etc/quota-sidecar-secrets"
SECRET_KEYS = {"valkey-password", "lago-api-key", "lago-webhook-hmac-key", "openmeter-token", "admin-token"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_takes_what_the_chart_makes(name: str, version: str) -> None:
    assert [fault for document in chart(name) for fault in faults(document, version)] == []


@pytest.mark.parametrize("name", SETS)
def test_no_object_is_there_twice(name: str) -> None:
    seen = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in chart(name)]
    assert len(seen) == len(set(seen))


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    done = run_helm("lint", str(CHART), "--strict", values=EVERYTHING)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


def test_chart_and_image_are_of_the_package_s_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == __version__
    assert image_of(chart("defaults"), CONTROL) == f"{IMAGE}:{__version__}"


def test_a_digest_goes_before_the_tag() -> None:
    assert image_of(chart("everything"), CONTROL) == f"{IMAGE}@{DIGEST}"
    environment = env_of(deployment(chart("everything"), INJECTOR))
    assert environment["QUOTA_INJECTOR_IMAGE"] == f"{IMAGE}@{DIGEST}"


@pytest.mark.parametrize("name", SETS)
def test_no_secret_is_made(name: str) -> None:
    assert of_kind(chart(name), "Secret") == []


@pytest.mark.parametrize("name", [*SETS, *KUSTOMIZATIONS])
def test_every_command_line_is_one_that_the_program_takes(name: str) -> None:
    for about, pod in pods(manifests(name)):
        for container in containers(pod):
            if container["image"].startswith(IMAGE):
                parse([str(each) for each in container["args"]], about)


def test_the_injector_s_variables_are_ones_that_it_reads() -> None:
    known = {each.envvar for each in commands()["injector"].params}
    assert set(env_of(deployment(chart("everything"), INJECTOR))) <= known


@pytest.mark.parametrize("name", [*SETS, "kustomize/base", "kustomize/overlays/production"])
def test_own_pods_are_restricted_as_pod_security_understands_it(name: str) -> None:
    for about, pod in pods(manifests(name)):
        assert unrestricted(pod) == [], about
        assert pod["metadata"]["labels"][names.INJECT] == "false", f"{about} would be injected"


@pytest.mark.parametrize("name", SETS)
def test_only_who_asks_the_api_server_has_a_token(name: str) -> None:
    for about, pod in pods(chart(name)):
        arguments = pod["spec"]["containers"][0]["args"]
        asks = about.endswith(INJECTOR) and not (
            "--self-signed" not in arguments and any(each.startswith("--kubernetes-version") for each in arguments)
        )
        assert pod["spec"]["automountServiceAccountToken"] is asks, about


@pytest.mark.parametrize("name", SETS)
def test_services_budgets_and_scalers_lead_to_pods_that_are_there(name: str) -> None:
    documents = chart(name)
    templates = [pod for _, pod in pods(documents)]
    for service in of_kind(documents, "Service"):
        served = [
            pod for pod in templates if selects({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
        ]
        assert len(served) == 1, service["metadata"]["name"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports_of(served[0]))
    for budget in of_kind(documents, "PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"], pod["metadata"]["labels"]) for pod in templates)
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        target = deployment(documents, scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"], "the scaler's number and the Deployment's would take turns"
    for about, pod in pods(documents):
        for container in pod["spec"]["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in ports_of(pod), about


@pytest.mark.parametrize("name", [name for name in SETS if name != "gateway only"])
def test_the_control_plane_s_settings_are_ones_that_it_takes(name: str, tmp_path: Path) -> None:
    config = loaded(settings(chart(name), CONTROL), tmp_path, env_of(deployment(chart(name), CONTROL)))
    assert config.metering.url is not None
    assert config.admin.token is not None
    assert config.lago.webhooks.hmac_key_file is not None
    declared = ports_of(deployment(chart(name), CONTROL)["spec"]["template"])
    assert declared == {"admin": config.admin.port, "quota-health": config.health.port}


@pytest.mark.parametrize("name", SETS)
def test_the_gateways_settings_are_ones_that_they_take(name: str, tmp_path: Path) -> None:
    injected = {"SIDECAR_UPSTREAM__URL": "http://127.0.0.1:8080", "SIDECAR_LISTEN__PORT": "15701"}
    config = loaded(settings(chart(name), "quota-sidecar"), tmp_path, injected, gateway=True)
    assert config.upstream.url == "http://127.0.0.1:8080"


@pytest.mark.parametrize("name", ["everything", "gateway only"])
def test_a_standalone_gateway_has_the_settings_that_it_needs(name: str, tmp_path: Path) -> None:
    made = deployment(chart(name), GATEWAY)
    config = loaded(settings(chart(name), "quota-sidecar"), tmp_path, env_of(made), gateway=True)
    assert ports_of(made["spec"]["template"]) == {"http": config.listen.port, "quota-health": config.health.port}
    assert config.admin.host == "127.0.0.1"
    drain_s = (config.limits.drain_delay_ms + config.limits.drain_timeout_ms) / 1000
    assert made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_only_the_control_plane_s_secret_opens_lago_and_openmeter(tmp_path: Path) -> None:
    documents = chart("everything")
    assert files_named_in(settings(documents, CONTROL)) == SECRET_KEYS
    # A gateway's settings name Lago's key too, since lago.url has to have one, but a gateway never reads it: it starts
    # without that file.
    assert files_named_in(settings(documents, "quota-sidecar")) == {"valkey-password", "lago-api-key"}
    injected = {"SIDECAR_UPSTREAM__URL": "http://127.0.0.1:8080"}
    assert loaded(settings(documents, "quota-sidecar"), tmp_path, injected, secrets=("valkey-password",), gateway=True)


def test_every_namespace_with_injected_pods_has_the_gateways_settings() -> None:
    found = [each for each in of_kind(chart("everything"), "ConfigMap") if each["metadata"]["name"] == "quota-sidecar"]
    assert sorted(each["metadata"]["namespace"] for each in found) == ["accounts", "payments", NAMESPACE]
    assert len({each["data"]["gateway.yaml"] for each in found}) == 1


def test_a_change_of_settings_restarts_who_reads_them() -> None:
    def checksums(documents: tuple[Manifest, ...]) -> set[str]:
        found = (pod["metadata"].get("annotations", {}).get("checksum/config") for _, pod in pods(documents))
        return {each for each in found if each}

    before = template(SETS["gateway only"])
    after = template(SETS["gateway only"] | {"dataPlane": {"config": {"default_route": "deny"}}})
    one, other = (tuple(load_all(done.stdout)) for done in (before, after))
    assert len(checksums(one)) == len(checksums(other)) == 1
    assert checksums(one) != checksums(other)


def test_nothing_but_webhooks_can_come_from_outside() -> None:
    [ingress] = of_kind(chart("everything"), "Ingress")
    [rule] = ingress["spec"]["rules"]
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [("/webhooks/lago", "Exact")]
    assert of_kind(chart("defaults"), "Ingress") == []
    assert {each["spec"].get("type", "ClusterIP") for each in of_kind(chart("everything"), "Service")} == {"ClusterIP"}


def test_injected_pods_let_clients_in_at_the_sidecar_s_ports_only() -> None:
    policies = [
        each for each in of_kind(chart("platform"), "NetworkPolicy") if each["metadata"]["name"].endswith("injected")
    ]
    assert [each["metadata"]["namespace"] for each in policies] == ["open-banking-api"]
    spec = policies[0]["spec"]
    assert spec["podSelector"]["matchLabels"] == {names.INJECTED: "true"}
    assert spec["policyTypes"] == ["Ingress"], "a rule for what goes out would bind the application too"
    clients, health = spec["ingress"]
    last = names.PROXY_PORT + names.PROXY_PORTS_MAX - 1
    assert clients == {"ports": [{"protocol": "TCP", "port": names.PROXY_PORT, "endPort": last}]}
    assert health["ports"] == [{"protocol": "TCP", "port": names.HEALTH_PORT}]
    assert health["from"], "everyone could read what accounts have left"


@pytest.mark.parametrize("name", ["everything", "cert-manager", "no injector", "platform"])
def test_policies_let_in_what_pods_listen_on_and_name_who_reads_metrics(name: str) -> None:
    documents = chart(name)
    own = [each for each in of_kind(documents, "NetworkPolicy") if each["metadata"]["namespace"] == NAMESPACE]
    for about, pod in pods(documents):
        [policy] = [each for each in own if selects(each["spec"]["podSelector"], pod["metadata"]["labels"])]
        let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert let_in == set(ports_of(pod).values()), about
        for rule in policy["spec"]["ingress"]:
            if ports_of(pod)["quota-health"] in [port["port"] for port in rule["ports"]]:
                assert rule["from"], about


def test_monitors_look_where_metrics_are() -> None:
    documents = chart("everything")
    monitor = named(documents, "ServiceMonitor", "quota-sidecar")["spec"]
    watched = [
        service for service in of_kind(documents, "Service")
        if selects(monitor["selector"], service["metadata"]["labels"])
        and monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    ]  # fmt: skip
    assert {each["spec"]["selector"]["app.kubernetes.io/component"] for each in watched} == {
        "control-plane", "injector", "gateway",
    }  # fmt: skip
    assert len(watched) == 3, "no pod is scraped twice"
    pod_monitor = named(documents, "PodMonitor", "quota-sidecar-injected")["spec"]
    assert pod_monitor["selector"]["matchLabels"] == {names.INJECTED: "true"}
    assert [each["port"] for each in pod_monitor["podMetricsEndpoints"]] == [names.HEALTH_PORT_NAME]
    assert pod_monitor["namespaceSelector"] == {"any": True}


def test_instances_are_called_as_their_pods_are() -> None:
    monitors = of_kind(chart("everything"), "ServiceMonitor", "PodMonitor")
    assert len(monitors) == 2
    for each in monitors:
        [endpoint] = each["spec"].get("endpoints") or each["spec"]["podMetricsEndpoints"]
        assert {
            "action": "replace", "sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance",
        } in endpoint["relabelings"]  # fmt: skip


def test_rules_and_dashboards_are_those_of_the_chart_s_folder_word_for_word() -> None:
    documents = chart("everything")
    rules = yaml.safe_load((CHART / "alerts" / "rules.yaml").read_text())
    assert named(documents, "PrometheusRule", "quota-sidecar")["spec"] == rules
    boards = [each for each in of_kind(documents, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]]
    found = {name: json.loads(text) for each in boards for name, text in each["data"].items()}
    assert found == {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert len(boards) == len(found) > 0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"injectr": {"enabled": False}}, "injectr is not allowed"),
    ({"injector": {"failurePolcy": "Ignore"}}, "failurePolcy is not allowed"),
    ({"injector": {"failurePolicy": "ignore"}}, "injector.failurePolicy"),
    ({"controlPlane": {"replicas": "2"}}, "controlPlane.replicas"),
    ({"controlPlane": {"resources": {"limit": {"memory": "1Gi"}}}}, "limit is not allowed"),
    ({"gateway": {"resources": {"limits": {"memory": "1 GB"}}}}, "gateway.resources.limits.memory"),
    ({"config": {"meterng": {"url": "http://openmeter"}}}, "meterng is not allowed"),
    ({"dataPlane": {"config": {"routes": [{"path": "/a", "unit": 2}]}}}, "unit is not allowed"),
    ({"dataPlane": {"config": {"limits": {"connections_max": 0}}}}, "connections_max"),
    ({"dataPlane": {"config": {"log": {"access": False}}}}, "dataPlane.config.log.access"),  # off, as YAML 1.1 reads it
    ({"dataPlane": {"config": {"identity": [{"type": "api-key"}]}}}, "dataPlane.config.identity.0"),
    ({"dataPlane": {"namespaces": "accounts"}}, "dataPlane.namespaces"),
    ({"networkPolicy": {"injected": {"aplicationPorts": [1]}}}, "aplicationPorts is not allowed"),
    ({"image": {"tag": "latest"}}, "image.tag"),
    ({"image": {"digest": "sha256:1"}}, "image.digest"),
    (
        {"dataPlane": {"config": {"ledger": {"spool_bytes_max": 134_217_728}}}},
        "ledger.spool_bytes_max: at most 125829120",
    ),
    ({"gateway": {"enabled": True}}, "gateway.upstream.url is needed"),
    ({"controlPlane": {"ingress": {"enabled": True}}}, "controlPlane.ingress.host is needed"),
    ({"injector": {"certificate": {"from": "existing"}}}, "is needed with injector.certificate.from: existing"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_slip_of_the_pen_in_values_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert message in done.stderr


def test_the_chart_can_be_part_of_another_one() -> None:
    assert template({"global": {"imageRegistry": "registry.bank.example"}}).returncode == 0


def image_of(documents: tuple[Manifest, ...], name: str) -> str:
    return str(deployment(documents, name)["spec"]["template"]["spec"]["containers"][0]["image"])


def env_of(made: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in made["spec"]["template"]["spec"]["containers"][0].get("env", [])}


def settings(documents: tuple[Manifest, ...], name: str) -> str:
    return str(named(documents, "ConfigMap", name, NAMESPACE)["data"]["gateway.yaml"])


def files_named_in(text: str) -> set[str]:
    return {path.rpartition("/")[2] for path in re.findall(rf"{SECRETS_DIRECTORY}/\S+", text)}


def loaded(
    text: str, directory: Path, environment: dict[str, str], *, secrets: tuple[str, ...] = (), gateway: bool = False
) -> Config:
    """The settings as a process reads them, its Secret at hand; of ``secrets`` only these keys."""
    for key in secrets or SECRET_KEYS:
        (directory / key).write_text("0123456789abcdef\n")
    path = directory / "gateway.yaml"
    path.write_text(text.replace(SECRETS_DIRECTORY, str(directory)))
    return load_config(path, environment, command="run" if gateway else None)


def parse(given: list[str], about: str) -> None:
    """Reads a command line as the program does, without doing what it says."""
    below, rest = commands(), given
    while below:
        assert rest[0] in below, f"{about}: {given}"
        command, rest = below[rest[0]], rest[1:]
        below = getattr(command, "commands", {})
    command.make_context(about, list(rest))


@cache
def commands() -> dict[str, Any]:
    return typer.main.get_command(build([])).commands  # type: ignore[attr-defined, no-any-return]


def unrestricted(pod: Manifest) -> list[str]:
    """What Pod Security's level "restricted" has against a pod."""
    found = []
    for container in containers(pod):
        about = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
        wanted = {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        found += [f"{container['name']}: {key}" for key, value in wanted.items() if about.get(key) != value]
        if "memory" not in container["resources"]["limits"] or "cpu" not in container["resources"]["requests"]:
            found.append(f"{container['name']}: resources")
    return found
