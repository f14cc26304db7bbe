"""The platform page's own manifests: Kubernetes takes them, they fit together, the page's mistakes are not in them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from sidecar import __version__
from sidecar.billing.catalog.document import load_catalog
from sidecar.billing.catalog.values import Catalog
from sidecar.config.errors import ConfigError
from sidecar.metering.settings import MeteringSettings
from tests.deploy.manifests import DEPLOY, SETS, chart, containers, load_all, named, of_kind, pods
from tests.deploy.schemas import VERSIONS, Manifest, faults

PLATFORM = DEPLOY / "platform"
FILES = sorted([*PLATFORM.glob("*.yaml"), PLATFORM / "catalog" / "job.yaml"])
NOT_MANIFESTS = ("kustomization.yaml", "openmeter-values.yaml", "quota-sidecar-values.yaml")
DOCUMENTS: dict[str, list[Manifest]] = {
    path.name: list(load_all(path.read_text())) for path in FILES if path.name not in NOT_MANIFESTS
}
ALL = [document for documents in DOCUMENTS.values() for document in documents]
LAGO = ("Deployment lago-api", "Deployment lago-worker", "Deployment lago-clock", "Job lago-migrate")
SECRETS = {
    "lago": {
        "SECRET_KEY_BASE", "LAGO_RSA_PRIVATE_KEY", "LAGO_ENCRYPTION_PRIMARY_KEY", "LAGO_ENCRYPTION_DETERMINISTIC_KEY",
        "LAGO_ENCRYPTION_KEY_DERIVATION_SALT", "REDIS_URL", "LAGO_REDIS_CACHE_URL", "LAGO_REDIS_CABLE_URL",
    },
    "lago-db-credentials": {"url"}, "lago-valkey": {"redis-password"}, "valkey": {"valkey-password"},
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_kubernetes_takes_it(name: str, version: str) -> None:
    assert [fault for document in DOCUMENTS[name] for fault in faults(document, version)] == []


def test_every_image_has_a_version() -> None:
    images = {container["image"] for _, pod in pods(ALL) for container in containers(pod)}
    assert images == {
        "getlago/api:v1.50.0", "getlago/front:v1.50.0", "valkey/valkey:9.0.1-alpine3.23",
        f"ghcr.io/openova/quota-sidecar:{__version__}",
    }  # fmt: skip


def test_no_secret_is_in_them_and_how_each_is_made_is_said() -> None:
    assert of_kind(ALL, "Secret") == []
    said = "".join((PLATFORM / name).read_text() for name in ("lago.yaml", "valkey.yaml"))
    for name, keys in SECRETS.items():
        assert f"create secret generic {name}" in said
        assert [key for key in keys if not re.search(rf"--from-(literal|file)={key}\b", said)] == []
    for about, pod in pods(ALL):
        for container in containers(pod):
            refs = [each["secretRef"]["name"] for each in container.get("envFrom", []) if "secretRef" in each]
            keys = [each["valueFrom"]["secretKeyRef"] for each in container.get("env", []) if "valueFrom" in each]
            assert set(refs) <= set(SECRETS), about
            assert all(each["key"] in SECRETS[each["name"]] for each in keys), about


def test_lago_is_whole_of_one_version_and_has_all_that_it_stops_without() -> None:
    found = dict(pods(DOCUMENTS["lago.yaml"]))
    assert set(LAGO) <= set(found)
    for name in LAGO:
        [container] = found[name]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "lago"}}, {"secretRef": {"name": "lago"}}]
        assert [each["name"] for each in container["env"]] == ["DATABASE_URL"]
    scripts = [found[name]["spec"]["containers"][0]["args"][0].rpartition("/")[2] for name in LAGO]
    assert scripts == ["start.api.sh", "start.worker.sh", "start.clock.sh", "migrate.sh"]


def test_one_clock_says_when_and_never_two_at_once() -> None:
    clock = named(ALL, "Deployment", "lago-clock")["spec"]
    assert (clock["replicas"], clock["strategy"]) == (1, {"type": "Recreate"})


def test_lago_and_the_ledger_do_not_share_a_valkey() -> None:
    text = (PLATFORM / "lago.yaml").read_text()
    assert set(re.findall(r"redis://:\$password@([^/]+)/(\d)", text)) == {
        ("lago-valkey:6379", "0"), ("lago-valkey:6379", "1"), ("lago-valkey:6379", "2"),
    }  # fmt: skip
    assert "valkey.databases" not in yaml.safe_dump(DOCUMENTS["lago.yaml"])


@pytest.mark.parametrize("name", ["valkey", "lago-valkey"])
def test_selectors_lead_to_pods_with_the_port(name: str) -> None:
    made = named(ALL, "StatefulSet", name)["spec"]
    labels = made["template"]["metadata"]["labels"] | {"statefulset.kubernetes.io/pod-name": f"{name}-0"}
    services = [each for each in of_kind(ALL, "Service") if each["metadata"]["name"] in (name, made["serviceName"])]
    assert services
    for service in services:
        assert service["spec"]["selector"].items() <= labels.items()
        assert [port["port"] for port in service["spec"]["ports"]] == [6379]


def test_every_address_in_the_gateway_s_settings_is_a_service_that_is_there() -> None:
    services = {
        f"{each['metadata']['name']}.{each['metadata']['namespace']}.svc:{port['port']}"
        for each in [*ALL, *chart("platform")] if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    } | {"openmeter-api.open-banking.svc:80"}  # of OpenMeter's own chart  # fmt: skip
    config = SETS["platform"]["config"]
    [endpoint] = [load_catalog(PLATFORM / "catalog" / "catalog.yaml").endpoint]
    assert endpoint is not None
    for url in (config["valkey"], config["metering"]["url"], config["lago"]["url"], endpoint.url):
        parts = urlsplit(url)
        assert f"{parts.hostname}:{parts.port or 80}" in services, url
    assert urlsplit(endpoint.url).path == "/webhooks/lago"
    assert endpoint.signature == "hmac"


def test_the_catalog_is_brought_to_lago_with_the_control_plane_s_settings_and_secret() -> None:
    [(_, pod)] = pods(DOCUMENTS["job.yaml"])
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    control = named(chart("platform"), "Deployment", "quota-sidecar-control")["spec"]["template"]["spec"]
    theirs = {each["name"]: each for each in control["volumes"]}
    assert volumes["config"]["configMap"] == theirs["quota-sidecar-config"]["configMap"]
    assert volumes["secrets"]["secret"] == theirs["quota-sidecar-secrets"]["secret"]
    [container] = pod["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert container["args"][2] == f"{mounts['catalog']}/catalog.yaml"
    assert container["args"][-1] == f"{mounts['config']}/gateway.yaml"


def test_nothing_in_the_catalog_is_refused_and_the_plan_is_that_of_the_example() -> None:
    ours, example = catalog(PLATFORM / "catalog" / "catalog.yaml"), catalog(DEPLOY.parent / "examples" / "catalog.yaml")
    plans, others = ({each.plan.code: each.plan for each in found.plans} for found in (ours, example))
    assert plans["api_pro"] == others["api_pro"]
    assert {each.code for each in ours.metrics} <= {each.code for each in example.metrics}
    [wallet] = ours.wallets
    assert wallet.metric_codes == ("api_calls",)
    assert {each.plan_code for each in ours.subscriptions} <= set(plans)


# What the page says, word for word.
METRIC = """
metrics: [{name: api_calls, code: api_calls, description: Number of API calls, aggregation_type: count_agg,
           field_name: calls}]
"""
WEBHOOKS = """
webhook_endpoint: {url: "https://api.bank.example/webhooks/lago",
                   event_types: [invoice.created, invoice.payment_status_updated, credit.exhausted]}
"""
MIXED = """
metrics: [{code: api_calls}]
plans:
  - code: p
    amount_currency: USD
    charges:
      - billable_metric_code: api_calls
        charge_model: graduated
        graduated_ranges:
          - {from_value: 0, to_value: 10, per_unit_amount: "1", flat_amount: "0"}
          - {from_value: 10, to_value: 20, per_unit_amount: "2", flat_amount: "0"}
          - {from_value: 21, to_value: null, per_unit_amount: "3", flat_amount: "0"}
"""


def test_the_page_s_own_metric_would_be_refused(tmp_path: Path) -> None:
    [refusal] = refusals(METRIC, tmp_path)
    assert "counts events, not calls" in refusal


def test_the_page_s_own_webhook_would_be_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wallet\.depleted_ongoing_balance is"):
        refusals(WEBHOOKS, tmp_path)


def test_a_table_in_both_styles_of_ranges_would_be_refused(tmp_path: Path) -> None:
    assert refusals(MIXED, tmp_path) != []


def test_usage_is_pushed_hourly_and_in_time_for_the_invoice() -> None:
    sync = SETS["platform"]["controlPlane"]["config"]["lago"]["sync"]
    assert sync["interval_s"] == 3600
    assert sync["final_flush_s"] > 0


def test_openmeter_remembers_events_longer_than_they_may_be_sent_again() -> None:
    config = yaml.safe_load((PLATFORM / "openmeter-values.yaml").read_text())["config"]
    assert config["dedupe"]["enabled"] is False
    dedupe = config["sink"]["dedupe"]
    assert (dedupe["enabled"], dedupe["driver"]) == (True, "redis")
    assert int(dedupe["config"]["expiration"].removesuffix("h")) * 3600 > MeteringSettings().retain_s


@pytest.mark.parametrize("path", [each for each in FILES if each.name not in ("namespaces.yaml", "kustomization.yaml")])
def test_what_differs_from_the_page_is_explained_where_it_differs(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if line.lstrip().startswith("#")]


def catalog(path: Path) -> Catalog:
    found = load_catalog(path)
    assert found.refusals == ()
    return found


def refusals(text: str, directory: Path) -> list[str]:
    path = directory / "catalog.yaml"
    path.write_text(text)
    return [each.reason for each in load_catalog(path).refusals]
