"""Who calls what, how much, and with what success."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import GREEN, INSTANCE, NAMESPACE, Dashboard, Panel, Query, Row, Variable, above

TPP: Final = Variable(
    "tpp",
    "TPP",
    'label_values(open_banking_requests_total{namespace=~"$namespace",tpp_id!="-"}, tpp_id)',
    "Accounts that have called. A gateway tells the first 1,000 apart; 'other' is the rest.",
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
            "Accounts with at least one request. Fewer than usual: somebody's integration is down, or their credentials"
            " have expired; see 'Callers that are not known'.",
            (_how_many(),),
            "short", "stat", 6, 4, GREEN, decimals=0,
        ),
        Panel(
            "TPPs that ran out of credit",
            "Accounts with at least one 402. Many at once: not the TPPs, but what we know of their funds; runbook"
            " QuotaRefusedRateHigh.",
            (_how_many(',status="402"'),),
            "short", "stat", 6, 4, above(1, 10), decimals=0,
        ),
        Panel(
            "TPPs that were too fast",
            "Accounts with at least one 429. One TPP: its limit is for the account manager to look at. Many: the limits"
            " are too tight.",
            (_how_many(',status="429"'),),
            "short", "stat", 6, 4, above(1, 10), decimals=0,
        ),
        Panel(
            "Callers that are not known",
            "Requests with a 401. A rise after a deployment: the gateway in front no longer sets its identity header,"
            " or is not among trusted_peers. Otherwise an expired certificate, key or token of a TPP, or somebody who"
            " tries keys.",
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

USE: Final = Row(
    "Use",
    (
        Panel(
            "Requests by TPP",
            "The ten busiest TPPs. One that rises alone may be a loop in its client: see its endpoints and its 4xx.",
            (Query(f"topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF}}}[RATE])))", "{{tpp_id}}"),),
            "reqps", width=12, stacked=True,
        ),
        Panel(
            "Requests by endpoint",
            "What the chosen TPPs call. Choose one TPP above to see its mix; a route that it has begun to call in a"
            " loop stands out.",
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
            "Each TPP in the chosen time: requests, their fate, and the credit left after the last charged one (lowest"
            " of the gateways that saw one). For an account's true state ask the ledger: sidecar account show TPP.",
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

TROUBLE: Final = Row(
    "Trouble",
    (
        Panel(
            "Refused for credit (402)",
            "TPPs that call without credit. It ends with a top-up in Lago, within seconds if its webhook arrives. If"
            " the TPP says that it has paid: sidecar account show TPP, then sidecar reconcile --once --dry-run TPP.",
            (
                Query(
                    f'topk(10, sum by (tpp_id) (rate(open_banking_requests_total{{{_OF},status="402"}}[RATE])))',
                    "{{tpp_id}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Too fast (429)",
            "TPPs beyond their rate or their requests of the day. The limits are metadata of the customer in Lago"
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
            "TPPs whose account or plan does not allow the call. All calls of one metric: its charge cannot be"
            " enforced; the panel 'What somebody should look at' in 'Quota: pipeline health' and the control plane's"
            " log name it.",
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
            "5xx of each TPP. All alike: the API or the ledger ('Quota: API overview'). One alone: a request of its own"
            " that the API cannot take.",
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
            "4xx but 402, 403 and 429, most of them the API's answers, which are charged. A TPP with a high share"
            " wants a call before it wants its money back.",
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
            "Nobody's requests: free routes (2xx), unknown callers (401), no route (404), bytes that are no request"
            " (400), too slow ones (408). A rise of 400 or 408 is a scanner or a broken client.",
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
    "Who calls what, how much, and with what success.",
    (NAMESPACE, INSTANCE, TPP),
    (NOW, USE, TROUBLE),
    "now-24h",
)
