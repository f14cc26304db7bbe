"""What Prometheus sees of webhooks."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from sidecar.billing.webhooks.metrics import WebhookCollector, WebhookMetrics


def test_counts_are_exported_under_their_names() -> None:
    metrics = WebhookMetrics(key_fetches=2, key_failures=1)
    metrics.taken["wallet.updated", "reload"] += 3
    metrics.refused["signature"] += 1
    for seconds in (0.0004, 0.002, 60.0):
        metrics.observe(seconds)
    registry = CollectorRegistry()
    registry.register(WebhookCollector(metrics))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines[:2] == [
        'sidecar_webhooks_total{result="reload",type="wallet.updated"} 3.0',
        'sidecar_webhook_refusals_total{reason="signature"} 1.0',
    ]
    buckets = [line for line in lines if "_bucket" in line]
    assert buckets[0] == 'sidecar_webhook_duration_seconds_bucket{le="0.0005"} 1.0'
    assert buckets[2] == 'sidecar_webhook_duration_seconds_bucket{le="0.0025"} 2.0'
    assert buckets[-1] == 'sidecar_webhook_duration_seconds_bucket{le="+Inf"} 3.0'
    assert lines[-4:] == [
        "sidecar_webhook_duration_seconds_count 3.0",
        "sidecar_webhook_duration_seconds_sum 60.0024",
        "sidecar_webhook_key_fetches_total 2.0",
        "sidecar_webhook_key_failures_total 1.0",
    ]
