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
            "Share of gateways whose ledger answers in time. The others answer 503 where they would charge, unless they"
            " are set to fail open: runbook QuotaLedgerUnreachable.",
            (Query("avg(sidecar_ledger_up{GATEWAY})", "with a ledger"),),
            "percentunit", "stat", 4, 4, below(0.5, 1), decimals=0,
        ),
        Panel(
            "Oldest undelivered event",
            "Age of the oldest entry in the outbox. Requests do not suffer; but what is not in OpenMeter by ten past"
            " the hour is on no invoice. Runbook QuotaOutboxOld.",
            (Query("max(sidecar_outbox_oldest_seconds{CONTROL})", "age"),),
            "s", "stat", 4, 4, above(60, 900),
        ),
        Panel(
            "Dead letters",
            "Events that OpenMeter refused for good and that wait for somebody's decision: sidecar outbox dead-letters."
            " Each is a call that was charged and is not metered. Runbook QuotaDeadLetters.",
            (Query("max(sidecar_outbox_dead_letters{CONTROL})", "letters"),),
            "short", "stat", 4, 4, above(None, 1), decimals=0,
        ),
        Panel(
            "Units missing in OpenMeter",
            "Charged and not counted, by the last audit. It sends them again by itself; runbook QuotaEventsMissing if"
            " it stays.",
            (Query("max(sidecar_audit_missing_units{CONTROL} LEADER)", "units"),),
            "short", "stat", 4, 4, above(1, 1000), decimals=0,
        ),
        Panel(
            "Since all accounts were looked at",
            "Time since the last sweep over Lago's customers ended. Until the next one funds stay as they were, but for"
            " accounts whose webhook arrives. Runbook QuotaReconcileOld.",
            (Query("time() - max(sidecar_sweep_timestamp_seconds{CONTROL} > 0)", "age"),),
            "s", "stat", 4, 4, above(600, 900),
        ),
        Panel(
            "Leading control planes",
            "One leads; the others stand by. None: nothing is reconciled, pushed to Lago or audited; runbook"
            " QuotaNoLeader. Two for a moment after a change are harmless: the older one's writes are refused.",
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
            "From sending a batch of holds and settles to its reply. Above 50 ms: Valkey's CPU, a slow command beside"
            " it (SLOWLOG GET), its disk (appendfsync), the network. Runbook QuotaLedgerSlow.",
            quantiles("sidecar_ledger_round_trip_seconds"),
            "s", steps=above(0.05, 0.25),
        ),
        Panel(
            "Round trip by gateway (mean)",
            "One gateway slower than the others: its node, its network or its CPU limit. All alike: Valkey itself,"
            " runbook QuotaLedgerSlow.",
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
            "0 where Valkey does not answer in time: nobody waits for it there any more, and one hold is tried again"
            " each ledger.breaker_open_ms. Runbook QuotaLedgerUnreachable.",
            (Query("sidecar_ledger_up{GATEWAY}", "{{instance}}"),),
            "bool_on_off", steps=GREEN, maximum=1,
        ),
        Panel(
            "Holds",
            "Credit checks decided per second, and holds given back: the API failed, or the request was not forwarded."
            " What is neither given back nor refused is charged. Many given back: 'Errors of the API' in 'Quota: API"
            " overview'.",
            (
                Query("sum(rate(sidecar_hold_duration_seconds_count{GATEWAY}[RATE]))", "decided"),
                Query("sum(rate(sidecar_released_holds_total{GATEWAY}[RATE]))", "given back"),
            ),
            "ops",
        ),
        Panel(
            "Requests that could not be checked",
            "Holds not decided in time, and the 503 that came of it. With on_ledger_failure: open the difference was"
            " let through and spooled. Runbook QuotaLedgerUnavailable.",
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
            "Holds and settles sent, or waiting to be sent, without a reply. It is near zero; if it grows Valkey is too"
            " slow, and a gateway that is killed now loses the settles among them.",
            (Query("sidecar_ledger_backlog_operations{GATEWAY}", "{{instance}}"),),
            steps=above(1000, 10_000),
        ),
        Panel(
            "Operations per batch",
            "Holds, settles and releases in one call of Valkey. It grows with load, which is what keeps Valkey cheap;"
            " at ledger.batch_operations_max the gateway is at its limit: add gateways.",
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
            "Batches sent again (a reply was lost; nothing is debited twice), holds granted after their caller left"
            " (given back), registrations (a gateway started, or was taken for dead), batches that the script refused,"
            " which should never be: runbook QuotaLedgerScriptErrors.",
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
            "Charges on the gateway's disk that the ledger does not have yet (on_ledger_failure: open only; else"
            " empty). It has to fall back to zero once Valkey is there: runbook QuotaSpoolNotDraining.",
            (Query("sidecar_spool_bytes{GATEWAY}", "{{instance}}"),),
            "bytes", width=6, steps=above(1, 48_000_000),
        ),
        Panel(
            "Spooled charges",
            "Charges let through without a credit check, and those of them that have been settled since.",
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
            "Events that wait",
            "Usage events in the outbox that OpenMeter has not accepted (estimated from entries not yet read)."
            " Growing: OpenMeter is slow or refuses, or too few publishers run. They cost Valkey's memory. Runbook"
            " QuotaOutboxLag.",
            (Query("max(sidecar_outbox_lag_events{CONTROL})", "events"),),
            steps=above(100_000, 1_000_000),
        ),
        Panel(
            "Age of the oldest",
            "How long the oldest entry has waited. Steady growth means that nothing at all is delivered: sidecar outbox"
            " status. Runbook QuotaOutboxOld.",
            (Query("max(sidecar_outbox_oldest_seconds{CONTROL})", "age"),),
            "s", steps=above(60, 900),
        ),
        Panel(
            "Events delivered",
            "Per second and publisher: all control planes publish. Nothing while units are charged ('Quota:"
            " monetization'): runbook QuotaOutboxOld.",
            (Query("rate(sidecar_publisher_events_total{CONTROL}[RATE])", "{{instance}}"),),
            "ops", stacked=True,
        ),
        Panel(
            "Requests to OpenMeter",
            "By what their answer meant: retry is trouble that passes (5xx, timeouts), pause a wrong token or URL,"
            " too_large a proxy's limit (the batch is halved), refused a bad event (its neighbours are delivered)."
            " Runbook QuotaOpenMeterFailing.",
            (Query("sum by (outcome) (rate(sidecar_publisher_requests_total{CONTROL}[RATE]))", "{{outcome}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Publishers that pause",
            "1 while OpenMeter refuses the publisher itself and nothing is delivered. Token or URL are wrong: runbook"
            " QuotaPublisherPaused.",
            (Query("sidecar_publisher_paused{CONTROL}", "{{instance}}"),),
            "bool_yes_no", steps=above(None, 1), maximum=1,
        ),
        Panel(
            "Takeovers and failures",
            "Entries taken over from a publisher that went silent, calls to Valkey that failed, events set aside as"
            " dead letters. Takeovers without a restart: a publisher hangs; see its log.",
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
            "Cores in use. A gateway is one process for each of listen.workers, which uses one core at most; near that,"
            " or near its limit, latency grows: add pods. Sizing in deploy/README.md.",
            (
                Query(f"rate(process_cpu_seconds_total{{GATEWAY}}[RATE]) {_OURS}", "{{instance}}"),
                Query(f"rate(process_cpu_seconds_total{{CONTROL}}[RATE]) {_OURS}", "control {{instance}}"),
            ),
            steps=above(0.7, 0.9),
        ),
        Panel(
            "Memory",
            "Resident memory. About 60 MB for a gateway, and 2 KB for each connection; the container's limit ends it.",
            (
                Query(f"process_resident_memory_bytes{{GATEWAY}} {_OURS}", "{{instance}}"),
                Query(f"process_resident_memory_bytes{{CONTROL}} {_OURS}", "control {{instance}}"),
            ),
            "bytes",
        ),
        Panel(
            "Releases",
            "Processes by release. Two at a time belong to a rollout; pods that were not restarted since keep theirs.",
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
