"""The publisher's counts, and their Prometheus families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.metering.publisher.ingest_responses import ResponseClass


def _no_requests() -> dict[ResponseClass, int]:
    return dict.fromkeys(ResponseClass, 0)


@dataclass(slots=True)
class PublisherMetrics:
    """Counts since the start, and the last known state of the outbox. Written by the publisher alone.

    ``events_in_progress``: read and not yet delivered. ``lag_events``: everything in the outbox, which counts entries;
    what has not been read counts with the mean number of events of the entries read so far.
    ``dead_letters``: written by this process; ``dead_letters_kept``: in Valkey now; ``dead_letters_dropped``: deleted
    because there were too many. ``tail_entries_dropped``: accepted entries that went early for want of memory.
    ``refused_entries``: of settles that no account could take, in Valkey now. ``events_refused``: those in progress
    that OpenMeter refused, by themselves or with others, and that are neither accepted nor dead letters yet.
    """

    events_delivered: int = 0
    entries_read: int = 0
    events_read: int = 0
    entries_claimed: int = 0
    entries_finished: int = 0
    dead_letters: int = 0
    dead_letters_dropped: int = 0
    tail_entries_dropped: int = 0
    valkey_failures: int = 0
    entries_archived: int = 0
    archive_failures: int = 0
    requests: dict[ResponseClass, int] = field(default_factory=_no_requests)
    events_in_progress: int = 0
    events_refused: int = 0
    lag_events: int = 0
    oldest_s: float = 0.0
    dead_letters_kept: int = 0
    refused_entries: int = 0
    paused: bool = False

    def note_outbox(self, entries: int, entries_in_progress: int, oldest_s: float, dead_letters: int) -> None:
        """The outbox holds so many entries, of which so many are in progress here."""
        mean = self.events_read / self.entries_read if self.entries_read else 1.0
        unread = max(0, entries - entries_in_progress)
        self.lag_events = self.events_in_progress + round(unread * mean)
        self.oldest_s = oldest_s
        self.dead_letters_kept = dead_letters


class PublisherCollector(Collector):
    """Give it to a ``prometheus_client`` registry: it reads the counts when it is asked."""

    def __init__(self, metrics: PublisherMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        counts = self._metrics
        yield GaugeMetricFamily(
            "sidecar_outbox_lag_events",
            "Usage events in the outbox that OpenMeter has not accepted yet. Entries that were not read are estimated"
            " from their number.",
            value=counts.lag_events,
        )
        yield GaugeMetricFamily(
            "sidecar_outbox_oldest_seconds", "Age of the oldest entry in the outbox.", value=counts.oldest_s
        )
        yield GaugeMetricFamily(
            "sidecar_outbox_dead_letters", "Dead letters that need a decision.", value=counts.dead_letters_kept
        )
        yield GaugeMetricFamily(
            "sidecar_refused_entries",
            "Entries of served calls that no account could be charged for: sidecar ledger refused.",
            value=counts.refused_entries,
        )
        yield GaugeMetricFamily(
            "sidecar_publisher_paused",
            "1 while OpenMeter refuses the publisher itself (a wrong token or URL), or one event after another.",
            value=int(counts.paused),
        )
        yield GaugeMetricFamily(
            "sidecar_publisher_refused_events",
            "Usage events that were refused and wait until other events are accepted.",
            value=counts.events_refused,
        )
        yield CounterMetricFamily(
            "sidecar_publisher_events", "Usage events that OpenMeter has accepted.", value=counts.events_delivered
        )
        yield CounterMetricFamily(
            "sidecar_publisher_entries_claimed",
            "Outbox entries taken over from a publisher that no longer responds.",
            value=counts.entries_claimed,
        )
        yield CounterMetricFamily(
            "sidecar_publisher_valkey_failures", "Calls to Valkey that failed.", value=counts.valkey_failures
        )
        yield CounterMetricFamily(
            "sidecar_dead_letters",
            "Usage events and unreadable entries that became dead letters.",
            value=counts.dead_letters,
        )
        yield CounterMetricFamily(
            "sidecar_dead_letters_dropped",
            "Oldest dead letters that were deleted because there were more than metering.dead_letters_max.",
            value=counts.dead_letters_dropped,
        )
        yield CounterMetricFamily(
            "sidecar_sent_entries_dropped",
            "Accepted outbox entries that are no longer kept for the audit because Valkey was short of memory.",
            value=counts.tail_entries_dropped,
        )
        yield CounterMetricFamily(
            "sidecar_archive_entries", "Outbox entries written to the archive.", value=counts.entries_archived
        )
        yield CounterMetricFamily(
            "sidecar_archive_failures",
            "Attempts to write to the archive that failed. Meanwhile accepted entries stay in the outbox.",
            value=counts.archive_failures,
        )
        requests = CounterMetricFamily(
            "sidecar_publisher_requests", "Requests to OpenMeter by response class.", labels=["outcome"]
        )
        for response_class, count in counts.requests.items():
            requests.add_metric([response_class.value], count)
        yield requests
