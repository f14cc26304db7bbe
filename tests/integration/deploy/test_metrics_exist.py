"""Dashboards and rules name what a running system exposes: metrics, labels, and values of labels."""

from __future__ import annotations

import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import redis
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.scenarios.ordinary import CONSENT
from sidecar.billing.lago.errors import LagoErrorKind
from sidecar.billing.reconcile.alerts import AlertKind
from sidecar.billing.webhooks.refusals import Refusal as WebhookRefusal
from sidecar.gateway import errors
from sidecar.kubernetes.injection_options import InjectionSettings
from sidecar.kubernetes.webhook import Injector
from sidecar.ledger.keys import Keys
from sidecar.metering.publisher.ingest_responses import ResponseClass
from tests.deploy.manifests import chart, of_kind
from tests.integration.deploy.observed import expressions
from tests.support.processes import Running, running
from tests.support.promql import Metrics, PromQLError

ACCOUNTS = "/open-banking/v3.1/aisp/accounts"
CONSENTS = "/open-banking/v3.1/pisp/domestic-payment-consents"
TIMEOUT_S = 30.0

TARGET_LABELS = frozenset({"namespace", "job", "instance"})
"""Which Prometheus puts on everything that it scrapes; the namespace by service discovery in Kubernetes."""

OF_THE_OPERATOR = {"namespace", "pod", "container", "service", "endpoint", "job", "instance", "node"}
"""Labels that the Prometheus Operator sets on what is scraped by a ServiceMonitor or a PodMonitor."""

ELSEWHERE = {
    "up": frozenset[str](),  # Prometheus itself
    # The kubelet's (cAdvisor), under these names since Kubernetes 1.16.
    "container_memory_working_set_bytes": frozenset({"pod", "container"}),
    "container_spec_memory_limit_bytes": frozenset({"pod", "container"}),
}

DECLARED = {
    "sidecar_refusals_total": ("kind", [each.name for each in vars(errors).values() if isinstance(each, errors.Kind)]),
    "sidecar_reconciles_total": ("result", ["loaded", "absent", "refused", "unavailable", "fenced"]),
    "sidecar_reconcile_alerts": ("kind", get_args(AlertKind)),
    "sidecar_lago_failures_total": ("kind", get_args(LagoErrorKind)),
    "sidecar_webhook_refusals_total": ("reason", [each.value for each in WebhookRefusal]),
    "sidecar_publisher_requests_total": ("outcome", [each.value for each in ResponseClass]),
}
"""Labels with few values, all of which need not have happened in the demo."""


def ask(url: str, body: Any = None, **fields: str) -> tuple[int, bytes]:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in fields.items()}}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def let_happen(demo: Running) -> None:
    """All that has a metric with a label of its own, which is not there before."""
    ready = demo.ready
    keys = {account["id"]: account["api_key"] for account in ready["accounts"]}
    lago, authorization = f"{ready['lago']}/api/v1", f"Bearer {ready['lago_api_key']}"

    def call(path: str, account: str) -> int:
        return ask(ready["proxy"] + path, X_API_Key=keys[account])[0]

    statuses = {call(ACCOUNTS, account) for account in keys for _ in range(13)}
    assert statuses == {200, 402, 429}
    assert call("/no-such-thing", "tpp-postpaid") == 404
    once = {"X_API_Key": keys["tpp-postpaid"], "x_idempotency_key": "once"}
    assert [ask(ready["proxy"] + CONSENTS, json.loads(CONSENT), **once)[0] for _ in range(2)] == [201, 201]
    assert ask(ready["proxy"] + ACCOUNTS)[0] == 401
    # Valkey refuses a batch: for a moment an account cannot be read.
    with redis.Redis.from_url(ready["valkey"].removeprefix("valkey+")) as client:
        state = Keys().state("tpp-postpaid")
        before: Any = client.get(state)
        client.set(state, b"")
        assert call(ACCOUNTS, "tpp-postpaid") == 503
        client.set(state, before)
    forged = {"X_Lago_Signature": "forged", "X_Lago_Signature_Algorithm": "hmac", "X_Lago_Unique_Key": "one"}
    assert ask(f"{ready['admin']}/webhooks/lago", {}, **forged)[0] == 401
    # Lago fails once, has terms that cannot be used, and gets usage from elsewhere, which its invoice will have.
    assert ask(f"{ready['lago']}/sandbox/faults", {"script": [{"path": "/api/v1/customers/", "status": 503}]})[0] == 200
    customer = {"external_id": "tpp-overage", "metadata": [{"key": "quota_mode", "value": "nonsense"}]}
    assert ask(f"{lago}/customers", {"customer": customer}, Authorization=authorization)[0] == 200
    event = {
        "transaction_id": "from-elsewhere",
        "external_subscription_id": "tpp-postpaid-sub",
        "code": "api_calls",
        "properties": {"calls": "3"},
        "timestamp": str(time.time()),
    }
    assert ask(f"{lago}/events", {"event": event}, Authorization=authorization)[0] == 200


WANTED = (
    "open_banking_credits_remaining",
    "sidecar_charged_units_total",
    "sidecar_free_repeats_total",
    "sidecar_refusals_total",
    "sidecar_webhooks_total",
    "sidecar_ledger_refusals_total",
    "sidecar_webhook_refusals_total",
    "sidecar_reconcile_alerts",
    "sidecar_lago_failures_total",
    "sidecar_invoice_difference_units",
    "sidecar_invoice_difference_cents",
    "sidecar_sync_set_aside_events",
    "sidecar_sync_timestamp_seconds",
    "sidecar_audit_age_seconds",
    "sidecar_valkey_memory_bytes",
)


def scrape_until_all_is_there(demo: Running) -> str:
    """The exposition, once it has a sample of each of ``WANTED``."""
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        text = ask(f"{demo.ready['admin']}/metrics")[1].decode()
        missing = [name for name in WANTED if not re.search(rf"^{name}[ {{]", text, re.MULTILINE)]
        if not missing:
            return text
        assert time.monotonic() < end_s, f"no sample of {missing}"
        time.sleep(0.2)


def failing_open(demo: Running, directory: Path) -> str:
    """A configuration for a second gateway, with a spool."""
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": demo.ready["upstream"]},
        "valkey": demo.ready["valkey"],
        "admin": {"port": 0},
        "ledger": {"on_ledger_failure": "open", "open": {"spool_directory": str(directory / "spool")}},
    }
    path = directory / "gateway.yaml"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    directory = tmp_path_factory.mktemp("open")
    with (
        running("demo", "--proxy-port", "0", "--admin-port", "0", "--json", "--period", "2") as demo,
        running("run", "-c", failing_open(demo, directory), "--json") as gateway,
    ):
        let_happen(demo)
        spooling = ask(f"{gateway.ready['admin']}/metrics")[1].decode()
        yield [scrape_until_all_is_there(demo), spooling, of_an_injector()]


class NoCertificates:
    every_s = 3600.0

    async def refresh(self, context: ssl.SSLContext) -> float | None:
        return None


def of_an_injector() -> str:
    """What the admission webhook exposes, which the demo does not run; all of it is there from the start."""
    return generate_latest(Injector(InjectionSettings(), NoCertificates()).registry).decode()


@pytest.fixture(scope="module")
def metrics(scrapes: list[str]) -> Metrics:
    labels: dict[str, set[str]] = defaultdict(set)
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for text in scrapes:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels[sample.name] |= {*sample.labels, *TARGET_LABELS}
                for label in {"le", "result"} & {*sample.labels}:
                    values[sample.name, label].add(sample.labels[label])
    for name, (label, known) in DECLARED.items():
        values[name, label] = {*known}
    for name, own in ELSEWHERE.items():
        labels[name] = {*own, *TARGET_LABELS}
    known_labels = {name: frozenset(each) for name, each in labels.items()}
    known_values = {key: frozenset(each) for key, each in values.items()}
    measured = Metrics(known_labels, known_values)
    for each in expressions():
        if each.record is not None:
            result = measured.labels_of(each.text)
            assert result is not None
            known_labels[each.record] = result
    return measured


def test_every_family_of_the_demo_has_a_sample(scrapes: list[str]) -> None:
    of_the_demo = text_string_to_metric_families(scrapes[0])
    empty = {family.name for family in of_the_demo if not family.samples}
    assert empty == set(), "make it happen in let_happen, so that its labels are known"


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_labels_of_what_is_scraped_push_no_metric_s_own_aside(kind: str, scrapes: list[str]) -> None:
    """A metric's own label that the target has too would be called ``exported_…``."""
    families = [family for text in scrapes for family in text_string_to_metric_families(text)]
    own = {label for family in families for sample in family.samples for label in sample.labels}
    [monitor] = of_kind(chart("everything"), kind)
    [endpoint] = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    dropped = {rule["regex"] for rule in endpoint["relabelings"] if rule["action"] == "labeldrop"}
    assert dropped == OF_THE_OPERATOR & own


@pytest.mark.parametrize("each", list(expressions()), ids=lambda each: each.where)
def test_what_an_expression_names_is_there(each: Any, metrics: Metrics) -> None:
    result = metrics.labels_of(each.text)
    assert result is not None, "a number is no alert and no panel"
    assert each.uses <= result, f"{each.where} shows {sorted(each.uses - result)}, and has {sorted(result)}"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("sum(rate(sidecar_refusal_total[5m]))", "no metric sidecar_refusal_total"),
        ('sidecar_refusals_total{type="x"}', "no label type"),
        ('sidecar_refusals_total{kind=~"out-of-credit|out-of-money"}', "never has kind='out-of-money'"),
        ('sidecar_request_duration_seconds_bucket{le="0.3"}', "never has le='0.3'"),
        ("sum by (tpp) (open_banking_credits_remaining)", "no label tpp"),
        ("sum by (tpp_id) (open_banking_credits_remaining) / sidecar_ledger_up", "can match nothing"),
        ("sidecar_ledger_up * on (tpp_id) open_banking_credits_remaining", "left side of .* no label tpp_id"),
        ("histogram_quantile(0.9, sum by (namespace) (sidecar_hold_duration_seconds_bucket))", "no label le"),
        ("sum(", "unexpected|unclosed"),
    ],
)
def test_a_name_that_is_not_there_is_found(wrong: str, reason: str, metrics: Metrics) -> None:
    with pytest.raises(PromQLError, match=reason):
        metrics.labels_of(wrong)
