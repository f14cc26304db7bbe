"""The webhook receiver's counts, and their Prometheus families."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class WebhookMetrics:
    """Counts since the start. Written by the receiver alone.

    ``taken``: verified webhooks by type (``other`` for unknown ones) and by what was done; ``refused`` by reason.
    ``seconds_buckets``: of handling, refusals included, the last bucket being everything above the bounds.
    """

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds_buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS_BOUNDS) + 1))
    seconds_total: float = 0.0
    key_fetches: int = 0
    key_failures: int = 0

    def observe(self, seconds: float) -> None:
        """One request has been handled."""
        self.seconds_buckets[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.seconds_total += seconds


class WebhookCollector(Collector):
    """Give it to a ``prometheus_client`` registry: it reads the counts when it is asked."""

    def __init__(self, metrics: WebhookMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        counts = self._metrics
        taken = CounterMetricFamily(
            "sidecar_webhooks", "Webhooks of Lago by type and result.", labels=["type", "result"]
        )
        for (label, result), count in list(counts.taken.items()):
            taken.add_metric([label, result], count)
        yield taken
        refused = CounterMetricFamily(
            "sidecar_webhook_refusals", "Refused requests to the webhook endpoint.", labels=["reason"]
        )
        for reason, count in list(counts.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, SECONDS_BOUNDS), "+Inf"], counts.seconds_buckets, strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(
            "sidecar_webhook_duration_seconds",
            "Time from the head of a webhook to its answer.",
            buckets,
            counts.seconds_total,
        )
        yield CounterMetricFamily(
            "sidecar_webhook_key_fetches", "Fetches of Lago's public key.", value=counts.key_fetches
        )
        yield CounterMetricFamily(
            "sidecar_webhook_key_failures", "Failed fetches of Lago's public key.", value=counts.key_failures
        )
