"""The reconciler's counts; ``BillingCollector`` exports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

ALERTS_SHOWN_MAX: Final = 1_000


@dataclass(slots=True)
class BillingMetrics:
    """``reconciles`` by result: loaded, absent, refused, unavailable, fenced. ``alerts`` by kind, as they stand after
    each account's last reading. Instants are Unix seconds.
    """

    reconciles: Counter[str] = field(default_factory=Counter)
    reconcile_seconds: float = 0.0
    reload_requests_waiting: int = 0
    reload_requests_oldest_s: float = 0.0
    sweeps: int = 0
    sweep_seconds: float = 0.0
    sweep_requests: int = 0
    sweep_accounts: int = 0
    sweep_read: int = 0
    swept_at_s: float = 0.0
    oldest_reading_s: float = 0.0
    is_leader: bool = False
    alerts: dict[str, dict[str, int]] = field(default_factory=dict)

    def note_alerts(self, account: str, kinds: Iterable[str]) -> None:
        """Replace what is known of one account."""
        found = Counter(kinds)
        if found and (account in self.alerts or len(self.alerts) < ALERTS_SHOWN_MAX):
            self.alerts[account] = dict(found)
        elif not found:
            self.alerts.pop(account, None)

    def alerts_by_kind(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for kinds in self.alerts.values():
            total.update(kinds)
        return total


class BillingCollector(Collector):
    """Prometheus families of one :class:`BillingMetrics`."""

    def __init__(self, metrics: BillingMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        m = self._metrics
        reconciles = CounterMetricFamily(
            "sidecar_reconciles", "Readings of accounts from Lago, by result.", labels=["result"]
        )
        for result, count in sorted(m.reconciles.items()):
            reconciles.add_metric([result], count)
        yield reconciles
        yield CounterMetricFamily(
            "sidecar_reconcile_seconds", "Time spent on readings of accounts.", value=m.reconcile_seconds
        )
        alerts = GaugeMetricFamily(
            "sidecar_reconcile_alerts",
            "Findings that a person should check, by kind. The log names the account.",
            labels=["kind"],
        )
        for kind, count in sorted(m.alerts_by_kind().items()):
            alerts.add_metric([kind], count)
        yield alerts
        yield GaugeMetricFamily(
            "sidecar_doorbells_waiting",
            "Reload requests that are not handled yet.",
            value=m.reload_requests_waiting,
        )
        yield GaugeMetricFamily(
            "sidecar_doorbells_oldest_seconds",
            "Age of the oldest reload request.",
            value=m.reload_requests_oldest_s,
        )
        yield CounterMetricFamily("sidecar_sweeps", "Sweeps over all customers.", value=m.sweeps)
        yield GaugeMetricFamily("sidecar_sweep_duration_seconds", "Duration of the last sweep.", value=m.sweep_seconds)
        yield GaugeMetricFamily(
            "sidecar_sweep_lago_requests", "Requests to Lago of the last sweep.", value=m.sweep_requests
        )
        yield GaugeMetricFamily("sidecar_sweep_accounts", "Accounts that the last sweep saw.", value=m.sweep_accounts)
        yield GaugeMetricFamily(
            "sidecar_sweep_accounts_read", "Accounts that the last sweep read in full.", value=m.sweep_read
        )
        yield GaugeMetricFamily("sidecar_sweep_timestamp_seconds", "End of the last sweep.", value=m.swept_at_s)
        yield GaugeMetricFamily(
            "sidecar_funds_age_seconds", "Age of the oldest reading of an account.", value=m.oldest_reading_s
        )
        yield GaugeMetricFamily(
            "sidecar_control_leader", "1 on the control plane that leads.", value=float(m.is_leader)
        )
