"""The rows of pipeline health that concern the control plane: audit, Lago, and what runs beside it."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import Panel, Query, Row, above, below

AUDIT: Final = Row(
    "Audit: ledger and OpenMeter",
    (
        Panel(
            "Difference",
            "Hour by hour, units that OpenMeter lacks, has beyond the ledger, that can no longer be sent again, or"
            " that still wait. Missing ones are sent again by themselves. Surplus: somebody else writes events, or"
            " Valkey lost data. Runbooks QuotaEventsMissing, QuotaEventsSurplus, QuotaEventsUnrecoverable.",
            (
                Query("max(sidecar_audit_missing_units{CONTROL} LEADER)", "missing"),
                Query("max(sidecar_audit_surplus_units{CONTROL} LEADER)", "surplus"),
                Query("max(sidecar_audit_unrecoverable_units{CONTROL} LEADER)", "unrecoverable"),
                Query("max(sidecar_audit_pending_units{CONTROL} LEADER)", "on their way"),
            ),
            steps=above(None, 1),
        ),
        Panel(
            "Hours",
            "Hours that agree, and those that do not or are not known to. Open ones that stay: the audit's log names"
            " hour and account.",
            (
                Query("max(sidecar_audit_hours_agreed{CONTROL} LEADER)", "agree"),
                Query("max(sidecar_audit_hours_open{CONTROL} LEADER)", "open"),
            ),
        ),
        Panel(
            "Audits",
            "Runs and failures per minute, events sent again, and the age of the last complete one (right). Runbook"
            " QuotaAuditOld.",
            (
                Query("60 * sum(rate(sidecar_audit_runs_total{CONTROL}[RATE]))", "runs/min"),
                Query("60 * sum(rate(sidecar_audit_failures_total{CONTROL}[RATE]))", "failures/min"),
                Query("60 * sum(rate(sidecar_audit_resent_events_total{CONTROL}[RATE]))", "sent again/min"),
                Query("min(sidecar_audit_age_seconds{CONTROL} LEADER) / 60", "age in minutes"),
            ),
        ),
    ),
)  # fmt: skip

LAGO: Final = Row(
    "Lago",
    (
        Panel(
            "Age of what is known",
            "Since the last sweep over all accounts ended, and the oldest reading of an account at that time (which"
            " may be as old as reconcile.full_interval_s). If the first grows, Lago cannot be read: runbook"
            " QuotaReconcileOld.",
            (
                Query("time() - max(sidecar_sweep_timestamp_seconds{CONTROL} > 0)", "last sweep"),
                Query("max(sidecar_funds_age_seconds{CONTROL} LEADER)", "oldest reading"),
            ),
            "s", steps=above(900),
        ),
        Panel(
            "Readings of accounts",
            "By what came of it: loaded, absent (not in Lago), refused (its data cannot be used), unavailable (Lago"
            " failed), fenced (another control plane leads). Runbook QuotaReconcileFailing.",
            (Query("sum by (result) (rate(sidecar_reconciles_total{CONTROL}[RATE]))", "{{result}}"),),
            "ops", stacked=True,
        ),
        Panel(
            "What somebody should look at",
            "Findings by kind; the control plane's log names account and reason. 'raise' and 'foreign' first: money"
            " that became available without cause, usage that only Lago has. Runbook QuotaReconcileFindings.",
            (Query("sum by (kind) (sidecar_reconcile_alerts{CONTROL} LEADER)", "{{kind}}"),),
            stacked=True, steps=above(None, 1),
        ),
        Panel(
            "Sweeps",
            "Duration of a sweep and the mean time to read one account. A sweep longer than reconcile.interval_s: raise"
            " lago.requests_per_second if Lago allows it.",
            (
                Query("max(sidecar_sweep_duration_seconds{CONTROL} LEADER)", "sweep"),
                Query(
                    "sum(rate(sidecar_reconcile_seconds_total{CONTROL}[RATE]))"
                    " / sum(rate(sidecar_reconciles_total{CONTROL}[RATE]))",
                    "one account",
                ),
            ),
            "s",
        ),
        Panel(
            "Accounts and requests of a sweep",
            "Accounts seen, of these read in full, and requests to Lago. Accounts that suddenly fall: Lago's lists are"
            " short; nothing is closed then, and a finding of the kind 'missing' says so.",
            (
                Query("max(sidecar_sweep_accounts{CONTROL} LEADER)", "accounts"),
                Query("max(sidecar_sweep_accounts_read{CONTROL} LEADER)", "read in full"),
                Query("max(sidecar_sweep_lago_requests{CONTROL} LEADER)", "requests"),
            ),
        ),
        Panel(
            "Reload requests",
            "Accounts that wait to be read because a webhook asked for it, and for how long. Above a minute top-ups"
            " take effect late: runbook QuotaReloadRequestsWaiting.",
            (
                Query("max(sidecar_doorbells_waiting{CONTROL} LEADER)", "waiting"),
                Query("max(sidecar_doorbells_oldest_seconds{CONTROL} LEADER)", "oldest, in s"),
            ),
            steps=above(60),
        ),
        Panel(
            "Webhooks",
            "Verified webhooks by type and by what was done, and refused requests by reason. None at all while invoices"
            " and top-ups happen: the endpoint in Lago is gone (sidecar catalog diff). Runbook QuotaWebhooksRefused.",
            (
                Query("sum by (type, result) (rate(sidecar_webhooks_total{CONTROL}[RATE]))", "{{type}} {{result}}"),
                Query("sum by (reason) (rate(sidecar_webhook_refusals_total{CONTROL}[RATE]))", "refused: {{reason}}"),
            ),
            "ops",
        ),
        Panel(
            "Answering webhooks",
            "Time to answer a webhook, and fetches of Lago's public key that failed. Lago gives up after a few seconds"
            " and tries again.",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le)"
                    " (rate(sidecar_webhook_duration_seconds_bucket{CONTROL}[RATE])))",
                    "p99, in s",
                ),
                Query("sum(rate(sidecar_webhook_key_failures_total{CONTROL}[RATE]))", "key failures/s"),
                Query("sum(rate(sidecar_webhook_key_fetches_total{CONTROL}[RATE]))", "key fetches/s"),
            ),
        ),
        Panel(
            "Requests to Lago",
            "By endpoint: the ten most frequent. Near lago.requests_per_second the pace holds readings back ('Held"
            " back').",
            (
                Query(
                    "topk(10, sum by (endpoint) (rate(sidecar_lago_requests_total{CONTROL}[RATE])))", "{{endpoint}}"
                ),
            ),
            "reqps", stacked=True,
        ),
        Panel(
            "Failures of Lago",
            "By kind, and requests sent again. unauthorized: the API key; throttled: other clients use up Lago's limit;"
            " network, timeout, status: Lago itself. Runbook QuotaLagoFailing.",
            (
                Query("sum by (kind) (rate(sidecar_lago_failures_total{CONTROL}[RATE]))", "{{kind}}"),
                Query("sum(rate(sidecar_lago_retries_total{CONTROL}[RATE]))", "sent again"),
            ),
            "reqps",
        ),
        Panel(
            "Held back",
            "Seconds per second for which requests to Lago waited for the pace, and pauses that Lago asked for (429)"
            " per minute. Lasting: raise lago.requests_per_second, or ask who else uses Lago's limit.",
            (
                Query("sum(rate(sidecar_lago_throttled_seconds_total{CONTROL}[RATE]))", "held back, s/s"),
                Query("60 * sum(rate(sidecar_lago_pauses_total{CONTROL}[RATE]))", "pauses/min"),
            ),
        ),
        Panel(
            "Sync",
            "Rounds of pushing usage and failed ones per minute, events that Lago took and those that it had already"
            " (sent again after an answer was lost; they count once). Runbook QuotaSyncLate.",
            (
                Query("60 * sum(rate(sidecar_sync_rounds_total{CONTROL}[RATE]))", "rounds"),
                Query("60 * sum(rate(sidecar_sync_rounds_failed_total{CONTROL}[RATE]))", "failed"),
                Query("60 * sum(rate(sidecar_sync_events_total{CONTROL}[RATE]))", "events"),
                Query("60 * sum(rate(sidecar_sync_duplicates_total{CONTROL}[RATE]))", "duplicates"),
            ),
            "opm",
        ),
    ),
)  # fmt: skip

PLATFORM: Final = Row(
    "Control plane and injector",
    (
        Panel(
            "Changes of the leader",
            "Terms begun in an hour. More than a few without restarts: the lease cannot be renewed in time (Valkey"
            " slow, CPU limit too low). Runbook QuotaLeaderFlapping.",
            (Query("sum(increase(sidecar_control_terms_total{CONTROL}[1h]))", "terms"),),
            steps=above(5), decimals=0,
        ),
        Panel(
            "Injections",
            "Admission requests by result, and their p99 in seconds. Errors keep pods from starting, or let them start"
            " without a gateway, as failurePolicy says. Runbook QuotaInjectorFailing.",
            (
                Query("sum by (result) (rate(sidecar_injector_requests_total[RATE]))", "{{result}}"),
                Query(
                    "histogram_quantile(0.99, sum by (le)"
                    " (rate(sidecar_injector_request_duration_seconds_bucket[RATE])))",
                    "p99, in s",
                ),
            ),
        ),
        Panel(
            "Injector's certificate",
            "Time until the certificate of the admission webhook expires; after that no pod is injected. Runbook"
            " QuotaInjectorCertificateExpires.",
            (Query("min(sidecar_injector_certificate_expiry_timestamp_seconds > 0) - time()", "left"),),
            "s", "stat", 8, 8, below(86_400, 604_800),
        ),
    ),
)  # fmt: skip
