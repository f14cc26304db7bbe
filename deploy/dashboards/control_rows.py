"""The rows of pipeline health that concern the control plane: audit, Lago, and what runs beside it."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import Panel, Query, Row, above, below

AUDIT: Final = Row(
    "Audit: ledger and OpenMeter",
    (
        Panel(
            "Difference",
            "Hour by hour: units that OpenMeter lacks, has beyond the ledger, that the audit can no longer send"
            " again, or that are on their way. The audit sends missing ones again by itself. Surplus: another system"
            " writes events, or Valkey lost data. Runbooks QuotaEventsMissing, QuotaEventsSurplus,"
            " QuotaEventsUnrecoverable.",
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
            "Hours in which ledger and OpenMeter agree, and hours in which they differ or were not compared. If open"
            " hours remain, the log of the audit names hour and account.",
            (
                Query("max(sidecar_audit_hours_agreed{CONTROL} LEADER)", "agree"),
                Query("max(sidecar_audit_hours_open{CONTROL} LEADER)", "open"),
            ),
        ),
        Panel(
            "Audits",
            "Runs and failures per minute, events sent again per minute, and the age of the last complete audit in"
            " minutes. Runbook QuotaAuditOld.",
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
            "Age of the readings",
            "Time since the last sweep over all accounts ended, and age of the oldest reading of an account (which"
            " may be as old as reconcile.full_interval_s). If the first grows, the control plane cannot read Lago:"
            " runbook QuotaReconcileOld.",
            (
                Query("time() - max(sidecar_sweep_timestamp_seconds{CONTROL} > 0)", "last sweep"),
                Query("max(sidecar_funds_age_seconds{CONTROL} LEADER)", "oldest reading"),
            ),
            "s", steps=above(900),
        ),
        Panel(
            "Readings of accounts",
            "Readings by result: loaded, absent (not in Lago), refused (its data is unusable), unavailable (Lago or"
            " Valkey failed), fenced (another control plane leads). Runbook QuotaReconcileFailing.",
            (Query("sum by (result) (rate(sidecar_reconciles_total{CONTROL}[RATE]))", "{{result}}"),),
            "ops", stacked=True,
        ),
        Panel(
            "Findings",
            "Findings of the reconciler by kind. The log of the control plane names account and reason. Check 'raise'"
            " and 'foreign' first: credit that rose without cause, usage that only Lago has. Runbook"
            " QuotaReconcileFindings.",
            (Query("sum by (kind) (sidecar_reconcile_alerts{CONTROL} LEADER)", "{{kind}}"),),
            stacked=True, steps=above(None, 1),
        ),
        Panel(
            "Sweeps",
            "Duration of a sweep, and the mean time to read one account. If a sweep takes longer than"
            " reconcile.interval_s, raise lago.requests_per_second if Lago allows it.",
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
            "Accounts that a sweep saw, accounts that it read in full, and requests to Lago. If the number of"
            " accounts falls suddenly, Lago's lists are incomplete; no account is closed then, and a finding of the"
            " kind 'missing' says so.",
            (
                Query("max(sidecar_sweep_accounts{CONTROL} LEADER)", "accounts"),
                Query("max(sidecar_sweep_accounts_read{CONTROL} LEADER)", "read in full"),
                Query("max(sidecar_sweep_lago_requests{CONTROL} LEADER)", "requests"),
            ),
        ),
        Panel(
            "Reload requests",
            "Reload requests that are not handled yet, such as those of webhooks, and the age of the oldest. Above a"
            " minute top-ups take effect late: runbook QuotaReloadRequestsWaiting.",
            (
                Query("max(sidecar_doorbells_waiting{CONTROL} LEADER)", "waiting"),
                Query("max(sidecar_doorbells_oldest_seconds{CONTROL} LEADER)", "oldest, in s"),
            ),
            steps=above(60),
        ),
        Panel(
            "Webhooks",
            "Verified webhooks by type and result, and refused requests by reason. If there are none although"
            " invoices and top-ups happen, the endpoint in Lago is missing (sidecar catalog diff). Runbook"
            " QuotaWebhooksRefused.",
            (
                Query("sum by (type, result) (rate(sidecar_webhooks_total{CONTROL}[RATE]))", "{{type}} {{result}}"),
                Query("sum by (reason) (rate(sidecar_webhook_refusals_total{CONTROL}[RATE]))", "refused: {{reason}}"),
            ),
            "ops",
        ),
        Panel(
            "Time to answer webhooks",
            "Time to answer a webhook, fetches of Lago's public key, and failed fetches. Lago gives up after a few"
            " seconds and sends the webhook again.",
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
            "Requests by endpoint: the ten most frequent. Near lago.requests_per_second the rate limit delays"
            " readings ('Waits for the request rate').",
            (
                Query(
                    "topk(10, sum by (endpoint) (rate(sidecar_lago_requests_total{CONTROL}[RATE])))", "{{endpoint}}"
                ),
            ),
            "reqps", stacked=True,
        ),
        Panel(
            "Failures of Lago",
            "Failed requests by kind, and requests sent again. unauthorized: the API key is wrong. throttled: other"
            " clients use up Lago's limit. network, timeout, status: Lago itself fails. Runbook QuotaLagoFailing.",
            (
                Query("sum by (kind) (rate(sidecar_lago_failures_total{CONTROL}[RATE]))", "{{kind}}"),
                Query("sum(rate(sidecar_lago_retries_total{CONTROL}[RATE]))", "sent again"),
            ),
            "reqps",
        ),
        Panel(
            "Waits for the request rate",
            "Seconds per second for which requests to Lago waited for lago.requests_per_second, and pauses per minute"
            " that Lago asked for (429). If it lasts, raise lago.requests_per_second, or find the other clients that"
            " use Lago's limit.",
            (
                Query("sum(rate(sidecar_lago_throttled_seconds_total{CONTROL}[RATE]))", "waiting, s/s"),
                Query("60 * sum(rate(sidecar_lago_pauses_total{CONTROL}[RATE]))", "pauses/min"),
            ),
        ),
        Panel(
            "Sync",
            "Rounds of pushing usage and failed rounds per minute, events that Lago accepted, and duplicates: events"
            " that Lago had already (sent again after a lost response; they count once). Runbook QuotaSyncLate.",
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
            "Terms of leaders begun within an hour. More than a few without restarts: the leader does not renew the"
            " lease in time (Valkey is slow, the CPU limit is too low). Runbook QuotaLeaderFlapping.",
            (Query("sum(increase(sidecar_control_terms_total{CONTROL}[1h]))", "terms"),),
            steps=above(5), decimals=0,
        ),
        Panel(
            "Injections",
            "Admission requests by result, and their p99 in seconds. Errors prevent pods from starting, or let them"
            " start without a gateway, as failurePolicy says. Runbook QuotaInjectorFailing.",
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
            "Time until the certificate of the admission webhook expires. After that no pod is injected. Runbook"
            " QuotaInjectorCertificateExpires.",
            (Query("min(sidecar_injector_certificate_expiry_timestamp_seconds > 0) - time()", "left"),),
            "s", "stat", 8, 8, below(86_400, 604_800),
        ),
    ),
)  # fmt: skip
