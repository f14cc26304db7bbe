"""``sidecar check`` and the version of Lago."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from sidecar.app.configuration import Config
from sidecar.cli.checks.services import lago
from tests.integration.billing.billing_system import API_KEY, config_of
from tests.support.processes import sidecar
from tests.unit.billing.lago import samples

PERIODLESS = {name: value for name, value in samples.invoice(is_whole=True).items() if name != "billing_periods"}
WITH_PERIODS = samples.invoice(is_whole=True)
HEALTHY: Mapping[str, Any] = {"message": "Success", "github_url": "https://github.com/getlago/lago-api"}


@contextmanager
def answering(
    version: str | None, invoice: Mapping[str, Any] | None, more: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """A Lago with at most one invoice; without a version ``GET /health`` does not get through. ``more``: answers by
    path."""
    listed = [] if invoice is None else [samples.invoice()]
    answers: dict[str, Any] = {
        "/api/v1/customers": samples.page("customers", samples.customer()),
        "/api/v1/webhook_endpoints": samples.page("webhook_endpoints"),
        "/api/v1/billable_metrics/api_calls": {"billable_metric": samples.metric()},
        "/api/v1/invoices": samples.page("invoices", *listed),
        "/api/v1/invoices/i2": {"invoice": invoice},
        **(more or {}),
    }
    if version is not None:
        answers["/health"] = {"version": version, **HEALTHY}

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            code = "billable_metric_not_found" if "/billable_metrics/" in self.path else "resource_not_found"
            body = json.dumps(found or {"status": 404, "error": "Not Found", "code": code}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("version", "invoice", "ok", "words"),
    [
        ("v1.51.0", WITH_PERIODS, True, "v1.51.0; the oldest that works is v1.19.0"),
        ("v1.19.0", None, True, "v1.19.0; the oldest"),
        ("v1.18.0", None, False, "Lago is v1.18.0; the oldest that works is v1.19.0"),
        ("v1.18.0", WITH_PERIODS, False, "Lago is v1.18.0"),
        ("v1.51.0", PERIODLESS, False, "no billing_periods"),
        (None, PERIODLESS, False, "no billing_periods; Lago is older than v1.19.0"),
        ("development", PERIODLESS, False, "no billing_periods"),
        (None, WITH_PERIODS, True, "invoices are those of v1.19.0 or later"),
        (None, None, None, "not told, and there is no invoice yet; the oldest that works is v1.19.0"),
    ],
)
async def test_a_lago_that_is_too_old_is_found_by_its_version_or_by_its_invoices(
    version: str | None, invoice: Mapping[str, Any] | None, ok: bool | None, words: str
) -> None:
    with answering(version, invoice) as url:
        findings = {each.what: each for each in await lago(config_of(1, url))}
    assert findings["lago"].ok is True
    assert findings["lago version"].ok is ok
    assert words in findings["lago version"].detail


def test_check_ends_with_an_error_for_a_lago_that_is_too_old(tmp_path: Path, valkey: redis.Redis) -> None:
    options = valkey.get_connection_kwargs()
    valkey_url = f"valkey://{options['host']}:{options['port']}"
    with answering("v1.18.0", None) as url:
        file = tmp_path / "gateway.yaml"
        lago = {"url": url, "api_key": API_KEY, "sync": {"enabled": False}}
        document = {"upstream": {"url": url}, "valkey": valkey_url, "admin": {"port": 0}, "lago": lago}
        file.write_text(json.dumps(document))
        ended = sidecar("check", "-c", str(file), "--json")
    failed = [each["what"] for each in json.loads(ended.stdout)["findings"] if each["ok"] is False]
    assert (ended.returncode, failed) == (1, ["lago version"])


ENTRIES = [
    {"metric": "payments_sepa", "code": "payments", "properties": {"scheme": "sepa", "product": "instant"}},
    {"metric": "payments_swift", "code": "payments", "properties": {"scheme": "swfit", "methd": "POST"}},
    {"metric": "transfers", "code": "transferz", "properties": {}},
]
FILTERS = [{"key": "scheme", "values": ["sepa", "swift"]}, {"key": "method", "values": ["GET", "POST"]}]
PAYMENTS: Mapping[str, Any] = {
    "/api/v1/billable_metrics/payments": {"billable_metric": samples.metric("payments", filters=FILTERS)},
    "/api/v1/plans": samples.page(
        "plans",
        samples.plan(
            charges=[samples.charge("payments", properties={"amount": "1", "pricing_group_keys": ["product"]})]
        ),
    ),
}
ROUTED = {
    "upstream": {"url": "http://127.0.0.1:1"},
    "valkey": "valkey://127.0.0.1:1",
    "routes": [{"path": "/payments", "metric": "payment_sepa"}],
}


async def test_a_property_that_no_charge_looks_at_is_a_warning_and_a_code_that_lago_lacks_a_fault() -> None:
    """A typo would silently have the price of the charge itself."""
    with answering("v1.51.0", None, PAYMENTS) as url:
        findings = await lago(config_of(1, url, billable_metrics=ENTRIES))
    found = [(each.what, each.ok, each.detail) for each in findings if each.what.startswith("lago metric")]
    assert [each[:2] for each in found] == [
        ("lago metric transfers", False), ("lago metric payments_swift", None), ("lago metric payments_swift", None),
    ]  # fmt: skip
    assert "by its entry in lago.billable_metrics: Lago has no billable metric 'transferz'" in found[0][2]
    assert {each[2] for each in found[1:]} == {
        "lago.billable_metrics[1].properties: methd is no filter of the billable metric payments, and no charge is"
        " grouped by it; did you mean method?",
        "lago.billable_metrics[1].properties: swfit is no value of the filter scheme of the billable metric payments;"
        " did you mean swift?",
    }


async def test_an_entry_of_a_metric_that_no_route_charges_is_a_warning() -> None:
    with answering("v1.51.0", None, PAYMENTS) as url:
        routes = Config.model_validate(ROUTED).routes
        config = config_of(1, url, billable_metrics=ENTRIES[:1]).model_copy(update={"routes": routes})
        findings = await lago(config)
    assert [(each.ok, each.detail) for each in findings if each.what == "lago metric payments_sepa"] == [
        (None, "lago.billable_metrics[0].metric: no route charges payments_sepa; did you mean payment_sepa?")
    ]
