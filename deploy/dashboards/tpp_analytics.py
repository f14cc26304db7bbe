"""Calls of each TPP by endpoint and result."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import GREEN, INSTANCE, NAMESPACE, Dashboard, Panel, Query, Row, Variable, above

TPP: Final = Variable(
    "tpp",
    "TPP",
    'label_values(open_banking_requests_total{namespace=~"$namespace",tpp_id!="-"}, tpp_id)',
    "Accounts that have called. A gateway counts the first 1,000 separately; 'other' is the rest.",
)
_OF: Final = 'GATEWAY,tpp_id=~"$tpp",tpp_id!="-"'


def _how_many(matchers: str = "") -> Query:
    """TPPs with at least one such request in the chosen time."""
    requests = f"sum by (tpp_id) (increase(open_banking_requests_total{{{_OF}{matchers}}}[$__range]))"
    return Query(f"count({requests} > 0) or vector(0)", "TPPs")


def _share(status: str) -> str:
    """Of a TPP's requests in the chosen time, those with such a status."""
    return (
        f'sum by (tpp_id) (increase(open_banking_requests_total{{{_OF},status=~"{status}"}}[$__range]))'
        f" / sum by (tpp_id) (increase(open_banking_requests_total{{{_OF}}}[$__range]))"
    )


NOW: Final = Row(
    "In the chosen time",
    (
        Panel(
            "TPPs that called",
            "Accounts with at least one request. If there are fewer than usual, an integration of a TPP is down, or"
            " its credentials have expired; see 'Callers that could not be identified'.",
            (_how_many(),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "TPPs that ran out of credit",
            "Accounts with at least one 402. If there are many at once, the funds in the ledger are wrong rather than"
            " the TPPs; runbook QuotaRefusedRateHigh.",
            (_how_many(',status="402"'),),
            "short", "stat", 6, 4, above(1, 10), decimals=0,
        ),
        Panel(
            "TPPs that exceeded a limit",
            "Accounts with at least one 429. One TPP: the account manager should check its limit. Many TPPs: the"
            " limits are too low.",
            (_how_many(',status="429"'),),
            "short", "stat", 6, 4, above(1, 10), decimals=0,
        ),
        Panel(
            "Callers that could not be identified",
            "Requests with a 401. If they rise after a deployment, the API gateway in front no longer sets its"
            " identity header, or is not in trusted_peers. Otherwise a certificate, key or token of a TPP has expired,"
            " or somebody tries keys.",
            (
                Query(
                    'sum(increase(open_banking_requests_total{GATEWAY,status="401"}[$__range])) or vector(0)',
                    "requests",
                ),
            ),
            "short", "stat", 6, 4, above(100, 10_000), decimals=0,
        ),
    ),
)  # fmt: skip

USAGE: Final = Row(
    "Usage",
    (
        Panel(
            "Requests by TPP",
            "The ten busiest TPPs. If one rises alone, its client may call in a loop: check its endpoints and its"
            " 4xx.",
            (Query(f"topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF}}}[RATE])))", "{{tpp_id}}"),),
            "reqps", width=12, stacked=True,
        ),
        Panel(
            "Requests by endpoint",
            "Routes that the chosen TPPs call. Choose one TPP above to see its routes; a route that it calls in a"
            " loop is clearly visible.",
            (
                Query(
                    f"topk(10, sum by (method, endpoint) (rate(open_banking_requests_total{{{_OF}}}[RATE])))",
                    "{{method}} {{endpoint}}",
                ),
            ),
            "reqps", width=12, stacked=True,
        ),
        Panel(
            "TPPs",
            "Each TPP in the chosen time: requests, shares by status, and the credit left after the last charged one"
            " (the lowest figure of all gateways). For the true state of an account ask the ledger: sidecar account"
            " show TPP.",
            (
                Query(f"sum by (tpp_id) (increase(open_banking_requests_total{{{_OF}}}[$__range]))", "Requests"),
                Query(_share("2.."), "2xx"),
                Query(_share("402"), "402"),
                Query(_share("429"), "429"),
                Query(_share("5.."), "5xx"),
                Query('min by (tpp_id) (open_banking_credits_remaining{GATEWAY,tpp_id=~"$tpp"})', "Credit left"),
            ),
            "short", "table", 24, 10, GREEN, decimals=0, by=("tpp_id",),
            units=dict.fromkeys(("2xx", "402", "429", "5xx"), "percentunit"),
        ),
    ),
)  # fmt: skip

ERRORS: Final = Row(
    "Refusals and errors",
    (
        Panel(
            "Refused for credit (402)",
            "TPPs that call without credit. It ends with a top-up in Lago, within seconds if its webhook arrives. If"
            " the TPP says that it has paid, run sidecar account show TPP, then sidecar reconcile --once --dry-run"
            " TPP.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status="402"}}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Over a limit (429)",
            "TPPs that exceed their rate or their daily limit. The limits are metadata of the customer in Lago"
            " (quota_rate, quota_burst, quota_per_day) or of the plan in lago.plan_policies.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status="429"}}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Suspended, closed, not in the plan (403)",
            "TPPs whose account or plan does not allow the call. If all calls of one metric are refused, its charge"
            " cannot be enforced; the panel 'Findings' in 'Quota: pipeline health' and the log of the control plane"
            " name it.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status="403"}}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Server errors by TPP",
            "5xx of each TPP. If all TPPs have them, the API or the ledger fails ('Quota: API overview'). If one TPP"
            " has them, the API cannot handle one of its requests.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status=~"5.."}}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Other client errors by TPP",
            "4xx except 402, 403 and 429. Most are answers of the API, which are charged. If the share of a TPP is"
            " high, contact it before it asks for its money back.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status=~"4..",'
                    'status!~"402|403|429"}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Requests without an account, by status",
            "Requests without an account: free routes (2xx), callers that could not be identified (401), no route"
            " (404), invalid requests (400), too slow requests (408). If 400 or 408 rise, the cause is a scanner or a"
            " broken client.",
            (
                Query(
                    'sum by (status) (rate(open_banking_requests_total{GATEWAY,tpp_id="-"}[RATE]))', "{{status}}"
                ),
            ),
            "reqps", stacked=True,
        ),
    ),
)  # fmt: skip

DASHBOARD: Final = Dashboard(
    "tpp-analytics",
    "Quota: TPP analytics",
    "Calls of each TPP by endpoint and result.",
    (NAMESPACE, INSTANCE, TPP),
    (NOW, USAGE, ERRORS),
    "now-24h",
)
