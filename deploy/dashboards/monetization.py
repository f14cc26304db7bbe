"""What was charged, what is left, and whether invoices say the same."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import CONTROL, GREEN, INSTANCE, NAMESPACE, Dashboard, Panel, Query, Row, above, below

CHARGED: Final = Row(
    "Charged",
    (
        Panel(
            "Units charged",
            "Units settled in the chosen time, by metric. Each has a usage event. Compare with 'Units that Lago took'"
            " below: they differ by what is still on its way.",
            (Query("sum by (metric) (increase(sidecar_charged_units_total{GATEWAY}[$__range]))", "{{metric}}"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Requests that were not sold",
            "Requests refused for lack of credit in the chosen time: what TPPs wanted and could not pay for. A good"
            " reason to call them.",
            (
                Query(
                    'sum(increase(sidecar_refusals_total{GATEWAY,kind="out-of-credit"}[$__range])) or vector(0)',
                    "requests",
                ),
            ),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Holds given back",
            "Credit held for a request and returned, mostly because the API failed: work that was not charged, in"
            " requests. High: see 'Errors of the API' in 'Quota: API overview'.",
            (Query("sum(increase(sidecar_released_holds_total{GATEWAY}[$__range]))", "holds"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "TPPs that run out within a day",
            "At the pace of the last hour, TPPs whose credit ends within 24 hours. 'When the credit ends' names them.",
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
            "By metric. A fall to nothing while requests go on: the route has become free, or repeats of idempotent"
            " calls only; check the routes of the last deployment.",
            (Query("sum by (metric) (rate(sidecar_charged_units_total{GATEWAY}[RATE]))", "{{metric}}"),),
            "cps", width=12, stacked=True,
        ),
        Panel(
            "Refused for lack of credit",
            "402 per second by TPP. It ends with a top-up; if the TPP has paid, look whether Lago's webhook arrived:"
            " runbook QuotaWebhooksRefused.",
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
            "Least credit",
            "The fifteen TPPs with the least left, in each account's own currency, after the last charged request that"
            " a gateway saw (the lowest of the gateways). After a top-up it is right again with the next charged"
            " request. Zero: the TPP gets 402.",
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
            "What was left after charged requests, lowest of the gateways, for the fifteen TPPs with the least. A step"
            " up is a top-up or a final invoice; a step down without requests is a correction from Lago: sidecar"
            " reconcile --once --dry-run TPP shows how it comes about.",
            (Query("bottomk(15, min by (tpp_id) (open_banking_credits_remaining{GATEWAY}))", "{{tpp_id}}"),),
            "short", width=8, height=9, decimals=2,
        ),
        Panel(
            "When the credit ends",
            "Time until a TPP's credit is used up at the pace of the last hour. Below a day the account manager or the"
            " TPP wants to know; nothing is broken.",
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
            "Units that Lago took",
            "Usage pushed from OpenMeter to Lago in the chosen time. Nothing for more than an hour while units are"
            " charged: runbook QuotaSyncLate.",
            (Query("sum(increase(sidecar_sync_units_total{CONTROL}[$__range]))", "units"),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "Units that missed their invoice",
            "Usage that reached Lago after it had billed the period, and was not carried into the next one: served and"
            " not paid. Runbook QuotaUsageMissedInvoice.",
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
            "Of the metrics on final invoices compared with the ledger in the chosen time, those that were equal. Empty"
            " until a period has been billed. Below 100 %: the table 'Differences', runbook QuotaInvoiceDiffers.",
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
            "Since the last complete round of pushing usage to Lago began. More than 75 minutes with the default"
            " interval of an hour: runbook QuotaSyncLate. What is missing at ten past the hour is on no invoice.",
            (Query("time() - max(sidecar_sync_timestamp_seconds{CONTROL})", "age"),),
            "s", "stat", 6, 4, above(3900, 4500),
        ),
        Panel(
            "Usage pushed to Lago",
            "Units per second that Lago took, and how many of them missed their invoice or were carried. Steps each"
            " hour are normal.",
            (
                Query("sum(rate(sidecar_sync_units_total{CONTROL}[RATE]))", "taken"),
                Query("sum(rate(sidecar_sync_late_units_total{CONTROL}[RATE]))", "missed their invoice"),
                Query("sum(rate(sidecar_sync_carried_units_total{CONTROL}[RATE]))", "carried"),
            ),
            "cps",
        ),
        Panel(
            "What Lago does not take",
            "Events that Lago refused, events not known to be delivered, units pushed that OpenMeter no longer has,"
            " accounts that failed, metrics that cannot be pushed. All but 'pending' should be zero: runbook"
            " QuotaSyncIncomplete.",
            (
                Query("max(sidecar_sync_set_aside_events{CONTROL} LEADER)", "events set aside"),
                Query("max(sidecar_sync_pending_events{CONTROL} LEADER)", "events pending"),
                Query("max(sidecar_sync_excess_units{CONTROL} LEADER)", "excess units"),
                Query("max(sidecar_sync_accounts_failed{CONTROL} LEADER)", "accounts failed"),
                Query("max(sidecar_sync_refused_metrics{CONTROL} LEADER)", "metrics refused"),
            ),
            steps=above(None, 1),
        ),
        Panel(
            "Differences",
            "Accounts whose final invoices do not say what the ledger charged: units of the ledger less those invoiced,"
            " and the same in the currency's smallest coin. Above zero: served and not billed. Below: billed and not"
            " served, to be credited before the TPP finds it. sidecar sync --once shows each period.",
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
    "What was charged, what is left, and whether invoices say the same.",
    (NAMESPACE, INSTANCE, CONTROL),
    (CHARGED, CREDIT, LAGO),
    "now-24h",
)
