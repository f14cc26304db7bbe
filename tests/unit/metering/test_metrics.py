"""What Prometheus sees."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from sidecar.metering.metrics import PublisherCollector, PublisherMetrics
from sidecar.metering.publisher.ingest_responses import ResponseClass


def test_counts_are_exported_under_their_names() -> None:
    metrics = PublisherMetrics(events_delivered=7, dead_letters=2, entries_read=2, events_read=10, paused=True)
    metrics.requests[ResponseClass.RETRY] = 3
    metrics.events_in_progress, metrics.events_refused = 4, 11
    metrics.dead_letters_dropped, metrics.tail_entries_dropped, metrics.refused_entries = 4, 8, 9
    metrics.note_outbox(entries=5, entries_in_progress=1, oldest_s=12.5, dead_letters=6)
    registry = CollectorRegistry()
    registry.register(PublisherCollector(metrics))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines == [
        "sidecar_outbox_lag_events 24.0",
        "sidecar_outbox_oldest_seconds 12.5",
        "sidecar_outbox_dead_letters 6.0",
        "sidecar_refused_entries 9.0",
        "sidecar_publisher_paused 1.0",
        "sidecar_publisher_refused_events 11.0",
        "sidecar_publisher_events_total 7.0",
        "sidecar_publisher_entries_claimed_total 0.0",
        "sidecar_publisher_valkey_failures_total 0.0",
        "sidecar_dead_letters_total 2.0",
        "sidecar_dead_letters_dropped_total 4.0",
        "sidecar_sent_entries_dropped_total 8.0",
        "sidecar_archive_entries_total 0.0",
        "sidecar_archive_failures_total 0.0",
        'sidecar_publisher_requests_total{outcome="accepted"} 0.0',
        'sidecar_publisher_requests_total{outcome="retry"} 3.0',
        'sidecar_publisher_requests_total{outcome="pause"} 0.0',
        'sidecar_publisher_requests_total{outcome="too_large"} 0.0',
        'sidecar_publisher_requests_total{outcome="refused"} 0.0',
    ]


def test_an_empty_outbox_has_no_lag() -> None:
    metrics = PublisherMetrics()
    metrics.note_outbox(entries=0, entries_in_progress=0, oldest_s=0.0, dead_letters=0)
    assert (metrics.lag_events, metrics.oldest_s) == (0, 0.0)
