"""From the hold to the invoice: ledger, outbox, audit, Lago, injector."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.control_rows import AUDIT, LAGO, PLATFORM
from deploy.dashboards.model import (
    CONTROL,
    GREEN,
    INSTANCE,
    NAMESPACE,
    Dashboard,
    Panel,
    Query,
    Row,
    above,
    below,
    quantiles,
)

NOW: Final = Row(
    "Now",
    (
        Panel(
            "Gateways with a ledger",
            "Share of gateways whose ledger responds in time. The others answer 503 to requests that they would"
            " charge, unless they are set to fail open: runbook QuotaLedgerUnreachable.",
            (Query("avg(sidecar_ledger_up{GATEWAY})", "with a ledger"),),
            "percentunit", "stat", 4, 4, below(0.5, 1), decimals=0,
        ),
        Panel(
            "Oldest undelivered event",
            "Age of the oldest entry in the outbox. Requests are not affected. But usage that is not in OpenMeter by"
            " ten past the hour misses its invoice. Runbook QuotaOutboxOld.",
            (Query("max(sidecar_outbox_oldest_seconds{CONTROL})", "age"),),
            "s", "stat", 4, 4, above(60, 900),
        ),
        Panel(
            "Dead letters",
            "Events that OpenMeter refused permanently and that need a decision: sidecar outbox dead-letters. Each is"
            " a call that was charged and is not metered. Runbook QuotaDeadLetters.",
            (Query("max(sidecar_outbox_dead_letters{CONTROL})", "letters"),),
            "short", "stat", 4, 4, above(None, 1), decimals=0,
        ),
        Panel(
            "Units missing in OpenMeter",
            "Units charged but not counted by OpenMeter, as of the last audit. The audit sends them again by itself."
            " If they remain: runbook QuotaEventsMissing.",
            (Query("max(sidecar_audit_missing_units{CONTROL} LEADER)", "units"),),
            "short", "stat", 4, 4, above(1, 1000), decimals=0,
        ),
        Panel(
            "Time since the last sweep",
            "Time since the last sweep over Lago's customers ended. Until the next one funds keep their values,"
            " except for accounts whose webhook arrives. Runbook QuotaReconcileOld.",
            (Query("time() - max(sidecar_sweep_timestamp_seconds{CONTROL} > 0)", "age"),),
            "s", "stat", 4, 4, above(600, 900),
        ),
        Panel(
            "Leading control planes",
            "One control plane leads; the others are on standby. If none leads, nothing is reconciled, pushed to Lago"
            " or audited: runbook QuotaNoLeader. Two for a moment after a change are harmless: the ledger refuses"
            " writes of the older one.",
            (Query("sum(sidecar_control_leader{CONTROL})", "leaders"),),
            "short", "stat", 4, 4, below(1, 1), decimals=0,
        ),
    ),
)  # fmt: skip

LEDGER: Final = Row(
    "Ledger",
    (
        Panel(
            "Round trip to Valkey",
            "Time from sending a batch of holds and settles to its reply. Above 50 ms check Valkey's CPU, slow"
            " commands (SLOWLOG GET), its disk (appendfsync), and the network. Runbook QuotaLedgerSlow.",
            quantiles("sidecar_ledger_round_trip_seconds"),
            "s", steps=above(0.05, 0.25),
        ),
        Panel(
            "Round trip by gateway (mean)",
            "If one gateway is slower than the others, the cause is its node, its network or its CPU limit. If all"
            " are slow, it is Valkey: runbook QuotaLedgerSlow.",
            (
                Query(
                    "sum by (instance) (rate(sidecar_ledger_round_trip_seconds_sum{GATEWAY}[RATE]))"
                    " / sum by (instance) (rate(sidecar_ledger_round_trip_seconds_count{GATEWAY}[RATE]))",
                    "{{instance}}",
                ),
            ),
            "s", steps=above(0.05, 0.25),
        ),
        Panel(
            "Gateways with an open breaker",
            "0 for gateways to which Valkey does not respond in time. Their requests do not wait for Valkey; the"
            " gateway tries one hold every ledger.breaker_open_ms. Runbook QuotaLedgerUnreachable.",
            (Query("sidecar_ledger_up{GATEWAY}", "{{instance}}"),),
            "bool_on_off", steps=GREEN, maximum=1,
        ),
        Panel(
            "Holds",
            "Credit checks decided per second, and holds released per second, because the API failed or the request"
            " was not forwarded. All other granted holds are charged. Many released: see 'Errors of the API' in"
            " 'Quota: API overview'.",
            (
                Query("sum(rate(sidecar_hold_duration_seconds_count{GATEWAY}[RATE]))", "decided"),
                Query("sum(rate(sidecar_released_holds_total{GATEWAY}[RATE]))", "released"),
            ),
            "ops",
        ),
        Panel(
            "Requests that could not be checked",
            "Holds not decided in time, and the resulting 503. With on_ledger_failure: open, the difference passed"
            " and was spooled. Runbook QuotaLedgerUnavailable.",
            (
                Query("sum(rate(sidecar_ledger_unavailable_holds_total{GATEWAY}[RATE]))", "holds not decided"),
                Query(
                    'sum(rate(sidecar_refusals_total{GATEWAY,kind="ledger-unavailable"}[RATE])) or vector(0)',
                    "answered 503",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Operations not confirmed",
            "Holds and settles that were sent or wait to be sent, and have no reply. It is near zero. If it grows,"
            " Valkey is too slow, and a gateway that is killed now loses the settles among them.",
            (Query("sidecar_ledger_backlog_operations{GATEWAY}", "{{instance}}"),),
            steps=above(1000, 10_000),
        ),
        Panel(
            "Operations per batch",
            "Holds, settles and releases in one call of Valkey. It grows with load, which keeps the cost of each"
            " operation low. At ledger.batch_operations_max the gateway is at its limit: add gateways.",
            (
                Query(
                    "sum(rate(sidecar_ledger_operations_total{GATEWAY}[RATE]))"
                    " / sum(rate(sidecar_ledger_batches_total{GATEWAY}[RATE]))",
                    "operations",
                ),
            ),
            width=6, decimals=1,
        ),
        Panel(
            "Repairs",
            "Batches sent again (a reply was lost; nothing is debited twice), holds granted too late for their"
            " request (released), registrations (a gateway started, or counted as dead), and batches that the script"
            " refused, which should never happen: runbook QuotaLedgerScriptErrors.",
            (
                Query("sum(rate(sidecar_ledger_resent_batches_total{GATEWAY}[RATE]))", "sent again"),
                Query("sum(rate(sidecar_ledger_late_grants_total{GATEWAY}[RATE]))", "late grants"),
                Query("sum(rate(sidecar_ledger_registrations_total{GATEWAY}[RATE]))", "registrations"),
                Query("sum(rate(sidecar_ledger_script_errors_total{GATEWAY}[RATE]))", "script errors"),
            ),
            "ops", width=6,
        ),
        Panel(
            "Spool",
            "Charges on the gateway's disk that the ledger does not have yet (only with on_ledger_failure: open). It"
            " must fall to zero when Valkey responds again: runbook QuotaSpoolNotDraining.",
            (Query("sidecar_spool_bytes{GATEWAY}", "{{instance}}"),),
            "bytes", width=6, steps=above(1, 48_000_000),
        ),
        Panel(
            "Spooled charges",
            "Charges per second of requests that passed without a credit check, and charges per second that were"
            " settled afterwards from the spool.",
            (
                Query("sum(rate(sidecar_spool_written_charges_total{GATEWAY}[RATE]))", "written"),
                Query("sum(rate(sidecar_spool_replayed_charges_total{GATEWAY}[RATE]))", "settled"),
            ),
            "cps", width=6,
        ),
    ),
)  # fmt: skip

OUTBOX: Final = Row(
    "Outbox and OpenMeter",
    (
        Panel(
            "Undelivered events",
            "Usage events in the outbox that OpenMeter has not accepted (entries that were not read yet are"
            " estimated). If it grows, OpenMeter is slow or refuses events, or too few publishers run. The events use"
            " Valkey's memory. Runbook QuotaOutboxLag.",
            (Query("max(sidecar_outbox_lag_events{CONTROL})", "events"),),
            steps=above(100_000, 1_000_000),
        ),
        Panel(
            "Age of the oldest",
            "Age of the oldest entry in the outbox. Steady growth means that no event is delivered: run sidecar"
            " outbox status. Runbook QuotaOutboxOld.",
            (Query("max(sidecar_outbox_oldest_seconds{CONTROL})", "age"),),
            "s", steps=above(60, 900),
        ),
        Panel(
            "Events delivered",
            "Events delivered per second and publisher. All control planes publish. If it is zero while units are"
            " charged ('Quota: monetization'): runbook QuotaOutboxOld.",
            (Query("rate(sidecar_publisher_events_total{CONTROL}[RATE])", "{{instance}}"),),
            "ops", stacked=True,
        ),
        Panel(
            "Requests to OpenMeter",
            "Requests by response class. retry: a temporary failure (5xx, timeouts). pause: a wrong token or URL."
            " too_large: the limit of a proxy (the publisher halves the batch). refused: an invalid event (the others"
            " are delivered). Runbook QuotaOpenMeterFailing.",
            (Query("sum by (outcome) (rate(sidecar_publisher_requests_total{CONTROL}[RATE]))", "{{outcome}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Publishers that pause",
            "1 while nothing is delivered: OpenMeter refuses the publisher itself (the token or the URL is wrong), or"
            " one event after another. Runbook QuotaPublisherPaused.",
            (Query("sidecar_publisher_paused{CONTROL}", "{{instance}}"),),
            "bool_yes_no", steps=above(None, 1), maximum=1,
        ),
        Panel(
            "Refused events that wait",
            "Events that OpenMeter refused, and that become dead letters when it accepts others. If it refuses"
            " everything, they wait. Runbook QuotaEventsRefused.",
            (Query("sidecar_publisher_refused_events{CONTROL}", "{{instance}}"),),
            steps=above(1),
        ),
        Panel(
            "Takeovers and failures",
            "Entries taken over from a publisher that no longer responds, failed calls to Valkey, and events set"
            " aside as dead letters. Takeovers without a restart: a publisher hangs; see its log.",
            (
                Query("sum(rate(sidecar_publisher_entries_claimed_total{CONTROL}[RATE]))", "entries taken over"),
                Query("sum(rate(sidecar_publisher_valkey_failures_total{CONTROL}[RATE]))", "Valkey failures"),
                Query("sum(rate(sidecar_dead_letters_total{CONTROL}[RATE]))", "dead letters"),
            ),
            "ops",
        ),
    ),
)  # fmt: skip

#: In a pod with a sidecar the application may give metrics of these names as well.
_OURS: Final = "and on (namespace, job, instance) sidecar_build_info"

PROCESSES: Final = Row(
    "Processes",
    (
        Panel(
            "CPU",
            "Cores in use. A gateway is one process for each of listen.workers, and each uses at most one core. Near"
            " that, or near the CPU limit, latency grows: add pods. Sizing is in deploy/README.md.",
            (
                Query(f"rate(process_cpu_seconds_total{{GATEWAY}}[RATE]) {_OURS}", "{{instance}}"),
                Query(f"rate(process_cpu_seconds_total{{CONTROL}}[RATE]) {_OURS}", "control {{instance}}"),
            ),
            steps=above(0.7, 0.9),
        ),
        Panel(
            "Memory",
            "Resident memory: about 60 MB for a gateway, and 2 KiB for each connection. At the limit of the container"
            " the kernel kills the process.",
            (
                Query(f"process_resident_memory_bytes{{GATEWAY}} {_OURS}", "{{instance}}"),
                Query(f"process_resident_memory_bytes{{CONTROL}} {_OURS}", "control {{instance}}"),
            ),
            "bytes",
        ),
        Panel(
            "Releases",
            "Processes by release. A rollout has two at a time. Pods that were not restarted since keep their"
            " release.",
            (Query("count by (version) (sidecar_build_info)", "{{version}}"),),
            decimals=0,
        ),
    ),
)  # fmt: skip

DASHBOARD: Final = Dashboard(
    "pipeline-health",
    "Quota: pipeline health",
    "From the hold to the invoice: ledger, outbox, audit, Lago, injector.",
    (NAMESPACE, INSTANCE, CONTROL),
    (NOW, LEDGER, OUTBOX, AUDIT, LAGO, PLATFORM, PROCESSES),
)
