"""Charged units, remaining credit, and the comparison of invoices with the ledger."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import CONTROL, GREEN, INSTANCE, NAMESPACE, Dashboard, Panel, Query, Row, above, below

CHARGED: Final = Row(
    "Charged",
    (
        Panel(
            "Units charged",
            "Units settled in the chosen time, by metric. Each has a usage event. Compare with 'Units that Lago"
            " accepted' below: the difference is the usage on its way.",
            (Query("sum by (metric) (increase(sidecar_charged_units_total{GATEWAY}[$__range]))", "{{metric}}"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Requests without credit",
            "Requests refused because of missing credit in the chosen time: calls that TPPs wanted to make and could"
            " not pay for. Account managers can contact these TPPs.",
            (
                Query(
                    'sum(increase(sidecar_refusals_total{GATEWAY,kind="out-of-credit"}[$__range])) or vector(0)',
                    "requests",
                ),
            ),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Released holds",
            "Holds released in the chosen time: requests that were not charged, because the API answered 4xx or 5xx or"
            " gave no answer, or the gateway refused them later. If it is high, see 'Errors of the API' in 'Quota: API"
            " overview'.",
            (Query("sum(increase(sidecar_released_holds_total{GATEWAY}[$__range]))", "holds"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "TPPs without credit within a day",
            "TPPs whose credit ends within 24 hours at the rate of the last hour. The panel 'When the credit ends'"
            " names them.",
            (
                Query(
                    "count(min by (tpp_id) (predict_linear(open_banking_credits_remaining{GATEWAY}[1h], 86400)) <= 0)"
                    " or vector(0)",
                    "TPPs",
                ),
            ),
            "short", "stat", 6, 4, above(1, 20), decimals=0,
        ),
        Panel(
            "Units charged per second",
            "Charged units per second by metric. If it falls to zero while requests continue, the route has become"
            " free, or all calls are repeats of idempotent calls. Check the routes of the last deployment.",
            (Query("sum by (metric) (rate(sidecar_charged_units_total{GATEWAY}[RATE]))", "{{metric}}"),),
            "cps", width=12, stacked=True,
        ),
        Panel(
            "Refused for lack of credit",
            "Answers with 402 per second by TPP. They end with a top-up. If the TPP has paid, check whether Lago's"
            " webhook arrived: runbook QuotaWebhooksRefused.",
            (
                Query(
                    'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{GATEWAY,status="402"}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps", width=12,
        ),
    ),
)  # fmt: skip

CREDIT: Final = Row(
    "Credit",
    (
        Panel(
            "Lowest credit",
            "The fifteen TPPs with the lowest credit, each in the currency of its account, after the last charged"
            " request (the lowest figure of all gateways). After a top-up the next charged request updates it. At zero"
            " the TPP gets 402.",
            (
                Query(
                    "bottomk(15, min by (tpp_id) (open_banking_credits_remaining{GATEWAY}))",
                    "{{tpp_id}}",
                ),
            ),
            "short", "bargauge", 8, 9, below(1, 10), decimals=2,
        ),
        Panel(
            "Credit over time",
            "Credit left after charged requests, for the fifteen TPPs with the lowest credit (the lowest figure of"
            " all gateways). A rise is a top-up or a final invoice. A fall without requests is a correction from Lago:"
            " sidecar reconcile --once --dry-run TPP shows the figures.",
            (Query("bottomk(15, min by (tpp_id) (open_banking_credits_remaining{GATEWAY}))", "{{tpp_id}}"),),
            "short", width=8, height=9, decimals=2,
        ),
        Panel(
            "When the credit ends",
            "Time until a TPP has used up its credit at the rate of the last hour. Below a day, tell the account"
            " manager or the TPP. The system works.",
            (
                Query(
                    "sort(min by (tpp_id) (open_banking_credits_remaining{GATEWAY}"
                    " / (-deriv(open_banking_credits_remaining{GATEWAY}[1h]) > 0)))",
                    "Time left",
                ),
            ),
            "s", "table", 8, 9, below(3600, 86_400), by=("tpp_id",),
        ),
    ),
)  # fmt: skip

LAGO: Final = Row(
    "Invoices",
    (
        Panel(
            "Units that Lago accepted",
            "Usage pushed from OpenMeter to Lago in the chosen time. Zero for more than an hour while units are"
            " charged: runbook QuotaSyncLate.",
            (Query("sum(increase(sidecar_sync_units_total{CONTROL}[$__range]))", "units"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Units that missed their invoice",
            "Usage that reached Lago after it had billed the period, and that was not carried into the next one. It"
            " was served but not paid. Runbook QuotaUsageMissedInvoice.",
            (
                Query(
                    "clamp_min(sum(increase(sidecar_sync_late_units_total{CONTROL}[$__range]))"
                    " - sum(increase(sidecar_sync_carried_units_total{CONTROL}[$__range])), 0)",
                    "units",
                ),
            ),
            "short", "stat", 6, 4, above(None, 1), decimals=0,
        ),
        Panel(
            "Invoices that agreed at once",
            "Share of metrics on final invoices that equalled the ledger at their first comparison in the chosen"
            " time. Empty until a period has been billed. Below 100 %: see the table 'Differences' and the runbook"
            " QuotaInvoiceDiffers.",
            (
                Query(
                    "sum(increase(sidecar_invoices_equal_total{CONTROL}[$__range]))"
                    " / (sum(increase(sidecar_invoices_compared_total{CONTROL}[$__range])) > 0)",
                    "share",
                ),
            ),
            "percentunit", "stat", 6, 4, below(0.99, 1), decimals=1,
        ),
        Panel(
            "Time since the last push",
            "Time since the last complete round of pushing usage to Lago began. More than 75 minutes with the default"
            " interval of an hour: runbook QuotaSyncLate. Usage that is missing at ten past the hour is on no invoice.",
            (Query("time() - max(sidecar_sync_timestamp_seconds{CONTROL})", "age"),),
            "s", "stat", 6, 4, above(3900, 4500),
        ),
        Panel(
            "Usage pushed to Lago",
            "Units per second that Lago accepted, those of them that missed their invoice, and those that were"
            " carried. Steps each hour are normal.",
            (
                Query("sum(rate(sidecar_sync_units_total{CONTROL}[RATE]))", "accepted"),
                Query("sum(rate(sidecar_sync_late_units_total{CONTROL}[RATE]))", "missed their invoice"),
                Query("sum(rate(sidecar_sync_carried_units_total{CONTROL}[RATE]))", "carried"),
            ),
            "cps",
        ),
        Panel(
            "Usage that Lago does not accept",
            "Events that Lago refused, events not known to be delivered, units pushed beyond what the ledger has"
            " charged, units in OpenMeter that it has not charged, metrics held back, accounts that failed, metrics"
            " that cannot be pushed. All but 'events pending' should be zero: runbook QuotaSyncIncomplete.",
            (
                Query("max(sidecar_sync_set_aside_events{CONTROL} LEADER)", "events set aside"),
                Query("max(sidecar_sync_pending_events{CONTROL} LEADER)", "events pending"),
                Query("max(sidecar_sync_excess_units{CONTROL} LEADER)", "excess units"),
                Query("max(sidecar_sync_surplus_units{CONTROL} LEADER)", "surplus units"),
                Query("max(sidecar_sync_held_back{CONTROL} LEADER)", "metrics held back"),
                Query("max(sidecar_sync_accounts_failed{CONTROL} LEADER)", "accounts failed"),
                Query("max(sidecar_sync_refused_metrics{CONTROL} LEADER)", "metrics refused"),
            ),
            steps=above(None, 1),
        ),
        Panel(
            "Differences",
            "Accounts whose final invoices differ from the ledger: units of the ledger minus invoiced units, and the"
            " same amount in the currency's smallest coin. Above zero: served but not billed. Below zero: billed but"
            " not served; credit it before the TPP finds it. sidecar sync --once shows each period.",
            (
                Query("sum by (tpp_id, metric) (sidecar_invoice_difference_units{CONTROL} LEADER)", "Units"),
                Query("sum by (tpp_id, metric) (sidecar_invoice_difference_cents{CONTROL} LEADER)", "Coins"),
            ),
            "short", "table", 8, 8, above(None, 1), by=("tpp_id", "metric"),
        ),
    ),
)  # fmt: skip

DASHBOARD: Final = Dashboard(
    "monetization",
    "Quota: monetization",
    "Charged units, remaining credit, and the comparison of invoices with the ledger.",
    (NAMESPACE, INSTANCE, CONTROL),
    (CHARGED, CREDIT, LAGO),
    "now-24h",
)
