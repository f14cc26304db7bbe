"""The data plane's numbers in Prometheus' exposition format. Collected when asked; nothing is paid for them in
between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.basics.build import request_path
from sidecar.basics.logger import log_writer
from sidecar.gateway.counters import HANDSHAKE_FAILURES, SHED_REASONS, Histogram
from sidecar.gateway.errors import KINDS
from sidecar.ledger.client.link_settings import ROUND_TRIP_BOUNDS_S
from sidecar.valkey.embedded import EmbeddedValkey

if TYPE_CHECKING:
    from sidecar.app.data_plane import DataPlane


def _buckets(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    total = 0
    rows = []
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, _buckets(histogram.bounds, histogram.counts), histogram.total)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


class BuildCollector(Collector):
    """Which release this is."""

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "sidecar_build_info",
            "1; the labels are the release, and whether the request path is compiled.",
            labels=["version", "request_path"],
        )
        info.add_metric([__version__, request_path()], 1)
        yield info


class LogCollector(Collector):
    """What did not come into the log."""

    def collect(self) -> Iterable[Metric]:
        writer = log_writer()
        dropped = writer.dropped if writer is not None else 0
        yield _counter("sidecar_log_dropped_lines", "Log lines that standard error did not take in time.", dropped)


class EmbeddedCollector(Collector):
    """What this process did to keep an embedded Valkey alive."""

    def __init__(self, embedded: EmbeddedValkey) -> None:
        self._embedded = embedded

    def collect(self) -> Iterable[Metric]:
        counters = self._embedded.counters
        yield _counter(
            "sidecar_embedded_valkey_restarts", "Times that this process started it again.", counters.restarts
        )
        yield _counter(
            "sidecar_embedded_valkey_failed_restarts", "Times that it did not start.", counters.failed_restarts
        )
        yield _counter(
            "sidecar_embedded_valkey_kills", "Times that it was killed since it did not answer.", counters.kills
        )
        yield _counter("sidecar_embedded_valkey_cut_bytes", "Bytes of an incomplete last command.", counters.cut_bytes)
        yield _gauge(
            "sidecar_embedded_valkey_damaged", "1 if its data cannot be loaded.", 1.0 if counters.damaged else 0.0
        )


class DataPlaneCollector(Collector):
    """Metrics of one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._proxy()
        yield from self._ledger()

    def _requests(self) -> Iterable[Metric]:
        counters = self._plane.gateway.context.counters
        requests = CounterMetricFamily(
            "open_banking_requests", "Requests answered.", labels=["tpp_id", "method", "endpoint", "status"]
        )
        for (account, method, endpoint, status), count in list(counters.requests.items()):
            requests.add_metric([account, method, endpoint, str(status)], count)
        yield requests
        remaining = GaugeMetricFamily(
            "open_banking_credits_remaining",
            "Credits left after the last charged request that this process saw, in the account's currency.",
            labels=["tpp_id"],
        )
        for account, (scaled, digits) in list(counters.remaining.items()):
            remaining.add_metric([account], scaled / 10**digits)
        yield remaining
        charged = CounterMetricFamily("sidecar_charged_units", "Units settled.", labels=["metric"])
        for metric, units in list(counters.charged_units.items()):
            charged.add_metric([metric], units)
        yield charged
        repeats = CounterMetricFamily(
            "sidecar_free_repeats", "Free repeats of calls that were charged.", labels=["tpp_id"]
        )
        for account, count in list(counters.repeats.items()):
            repeats.add_metric([account], count)
        yield repeats
        refusals = CounterMetricFamily("sidecar_refusals", "Requests refused by the gateway itself.", labels=["kind"])
        for kind in KINDS:  # from 0 on: of a counter that begins with 1, no rate shows the first
            refusals.add_metric([kind.name], counters.refusals.get(kind.name, 0))
        yield refusals
        sheds = CounterMetricFamily(
            "sidecar_sheds", "Requests and connections that there was no room for.", labels=["reason"]
        )
        for reason in SHED_REASONS:
            sheds.add_metric([reason], counters.sheds.get(reason, 0))
        sheds.add_metric(["lookups"], self._plane.identity.refused_lookups)
        yield sheds

    def _proxy(self) -> Iterable[Metric]:
        gateway = self._plane.gateway
        counters, pools = gateway.context.counters, [*gateway.context.destinations]
        yield _histogram("sidecar_request_duration_seconds", "From head to the end of the answer.", counters.latency)
        yield _histogram("sidecar_hold_duration_seconds", "From head to the decided hold.", counters.hold)
        yield _gauge("sidecar_connections", "Client connections, from accept on.", gateway.taken)
        yield _gauge("sidecar_handshakes", "Those of them whose handshake is under way.", len(gateway.handshakes))
        most = gateway.context.settings.connections_max
        yield _gauge("sidecar_connections_max", "Client connections that there is room for.", most)
        failures = CounterMetricFamily(
            "sidecar_handshake_failures", "Connections that ended before they could have a request.", labels=["reason"]
        )
        for reason in HANDSHAKE_FAILURES:
            failures.add_metric([reason], counters.handshake_failures.get(reason, 0))
        yield failures
        yield _counter("sidecar_connections_accepted", "Client connections accepted.", counters.connections_accepted)
        yield _counter("sidecar_connections_refused", "Client connections refused.", counters.connections_refused)
        sampling = gateway.context.log_sampling
        yield _counter("sidecar_log_unlogged_requests", "Lines about requests left out as repeated.", sampling.unlogged)
        yield _gauge("sidecar_upstream_connections", "Connections to the API.", sum(pool.size for pool in pools))
        yield _gauge("sidecar_upstream_idle_connections", "Idle ones among them.", sum(pool.idle for pool in pools))
        waiting = sum(pool.waiting for pool in pools)
        yield _gauge("sidecar_upstream_waiting_requests", "Requests that wait for a connection.", waiting)
        yield _counter("sidecar_upstream_connects", "Connections to the API opened.", counters.upstream_connects)
        yield _counter(
            "sidecar_upstream_retries", "Requests repeated on a fresh connection.", counters.upstream_retries
        )
        yield _counter("sidecar_upstream_aborts", "Answers that the API did not finish.", counters.upstream_aborts)
        yield _counter("sidecar_client_aborts", "Clients that left before their answer.", counters.client_aborts)
        yield _counter("sidecar_released_holds", "Holds given back.", counters.released)
        yield _counter("sidecar_tunnels", "Upgraded connections.", counters.tunnels)

    def _ledger(self) -> Iterable[Metric]:
        ledger = self._plane.ledger
        counters = ledger.counters
        yield _gauge("sidecar_ledger_up", "1 while Valkey answers in time.", 1.0 if ledger.is_up else 0.0)
        down = len(ledger.partitions_down)
        yield _gauge("sidecar_ledger_down_partitions", "Partitions that cannot be reached, of a Cluster's.", down)
        yield _gauge("sidecar_ledger_backlog_operations", "Operations that Valkey has not confirmed.", ledger.backlog)
        yield _counter("sidecar_ledger_batches", "Batches sent.", counters.batches)
        yield _counter("sidecar_ledger_operations", "Holds, settles and releases in them.", counters.operations)
        yield _counter("sidecar_ledger_unavailable_holds", "Holds not decided in time.", counters.timeouts)
        yield _counter("sidecar_ledger_resent_batches", "Batches sent again with their number.", counters.resent)
        yield _counter("sidecar_ledger_late_grants", "Holds granted after their caller left.", counters.late_grants)
        yield _counter("sidecar_ledger_registrations", "Registrations of this instance.", counters.registrations)
        yield _counter("sidecar_ledger_script_errors", "Batches that failed in the script.", counters.script_errors)
        refusals = CounterMetricFamily(
            "sidecar_ledger_refusals", "Error replies of Valkey to batches, by their first word.", labels=["word"]
        )
        for word, count in sorted(counters.refusals.items()):
            refusals.add_metric([word], count)
        yield refusals
        yield _counter(
            "sidecar_ledger_refused_settles", "Settles that no account could take.", counters.refused_settles
        )
        yield _counter("sidecar_ledger_lost_settles", "Settles that only the log has.", counters.lost_settles)
        yield _counter("sidecar_ledger_clock_steps", "Times that Valkey's clock was set back.", counters.clock_steps)
        yield _counter("sidecar_ledger_generations", "Times that the ledger was another one.", counters.generations)
        yield _counter(
            "sidecar_ledger_lost_operations",
            "Confirmed charges that Valkey lost. They are offered to it again.",
            counters.lost_operations,
        )
        yield _counter(
            "sidecar_ledger_unrecovered_operations",
            "Those of them that this process did not have any more.",
            counters.unrecovered_operations,
        )
        yield HistogramMetricFamily(
            "sidecar_ledger_round_trip_seconds",
            "From sending a batch to its reply.",
            _buckets(ROUND_TRIP_BOUNDS_S, counters.round_trip_buckets),
            counters.round_trip_s,
        )
        spool = self._plane.spool
        if spool is not None:
            yield _gauge("sidecar_spool_bytes", "Charges on disk that the ledger does not have yet.", spool.bytes_used)
            yield _counter("sidecar_spool_written_charges", "Charges written to disk.", spool.written)
            dead = self._plane.dead_spools
            of_dead, damages = (dead.replayed, dead.damages) if dead is not None else (0, 0)
            yield _counter(
                "sidecar_spool_replayed_charges", "Charges of them given to the ledger.", spool.replayed + of_dead
            )
            yield _counter("sidecar_spool_damaged_parts", "Damaged parts of spools that were put aside.", damages)
