"""Traffic, answers and times of the API as its clients see it."""

from __future__ import annotations

from typing import Final

from deploy.dashboards.model import GREEN, INSTANCE, NAMESPACE, Dashboard, Panel, Query, Row, above, below, quantiles

_REQUESTS: Final = "sum(rate(open_banking_requests_total{GATEWAY}[RATE]))"
_OWN_FAULTS: Final = (
    '(sum(rate(sidecar_refusals_total{GATEWAY,kind=~"ledger-unavailable|identity-unavailable|overloaded|internal-error"}'
    "[RATE])) or vector(0))"
)
_SERVER_ERRORS: Final = '(sum(rate(open_banking_requests_total{GATEWAY,status=~"5.."}[RATE])) or vector(0))'

NOW: Final = Row(
    "Now",
    (
        Panel(
            "Requests",
            "Requests answered per second, refusals included. A sudden fall with all gateways ready: look at what is in"
            " front of them (load balancer, DNS, certificates).",
            (Query(_REQUESTS, "requests"),),
            "reqps", "stat", 4, 4, GREEN,
        ),
        Panel(
            "Answers that are not 5xx",
            "Share of answers that are not the server's fault, the gateway's own 503 included. Below 99 %: the panels"
            " 'Errors of the API' and 'Refusals by kind' tell whose it is.",
            (Query(f"1 - {_SERVER_ERRORS} / {_REQUESTS}", "share"),),
            "percentunit", "stat", 4, 4, below(0.95, 0.99), decimals=2,
        ),
        Panel(
            "p95 of a request",
            "From the head of the request to the end of the answer, the API's own time included. If it is high and"
            " 'Credit check' is not, it is the API.",
            (quantiles("sidecar_request_duration_seconds")[1],),
            "s", "stat", 4, 4, above(0.75, 2),
        ),
        Panel(
            "p99 of the credit check",
            "From the head of the request to the decided hold: what the gateway adds. Above 25 ms look at Valkey: the"
            " dashboard 'Quota: pipeline health', runbook QuotaLedgerSlow.",
            (quantiles("sidecar_hold_duration_seconds")[2],),
            "s", "stat", 4, 4, above(0.025, 0.1),
        ),
        Panel(
            "Refused by the gateway",
            "Share of requests that never reached the API (401, 402, 403, 404, 429, 503). A jump that no TPP explains:"
            " runbook QuotaRefusedRateHigh.",
            (Query(f"(sum(rate(sidecar_refusals_total{{GATEWAY}}[RATE])) or vector(0)) / {_REQUESTS}", "share"),),
            "percentunit", "stat", 4, 4, above(0.1, 0.25), decimals=1,
        ),
        Panel(
            "Gateways without Valkey",
            "Gateways whose ledger does not answer in time. They answer 503 where they would charge, unless they"
            " are set to fail open. Runbook QuotaLedgerUnreachable.",
            (Query("count(sidecar_ledger_up{GATEWAY} == 0) or (0 * count(sidecar_ledger_up{GATEWAY}))", "gateways"),),
            "short", "stat", 4, 4, above(None, 1),
        ),
    ),
)  # fmt: skip

TRAFFIC: Final = Row(
    "Traffic",
    (
        Panel(
            "Requests by status",
            "Answers per second by status. 402 is a TPP out of credit, 429 one that is too fast, 499 a client that left"
            " before its answer. 5xx: see 'Errors of the API' and 'Refusals by kind'.",
            (Query("sum by (status) (rate(open_banking_requests_total{GATEWAY}[RATE]))", "{{status}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Requests by endpoint",
            "The ten busiest routes. '(other)' is what no route of the configuration matches: if it grows, a route is"
            " missing and is charged as the default route.",
            (Query("topk(10, sum by (endpoint) (rate(open_banking_requests_total{GATEWAY}[RATE])))", "{{endpoint}}"),),
            "reqps",
        ),
        Panel(
            "Refusals by kind",
            "What the gateway refused itself. out-of-credit and too-many-requests are business; ledger-unavailable,"
            " identity-unavailable, overloaded and internal-error are ours to mend, upstream-* are the API's.",
            (Query("sum by (kind) (rate(sidecar_refusals_total{GATEWAY}[RATE]))", "{{kind}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Endpoints",
            "Each route in the chosen time: requests, share refused or failed. Sort by a column to find the route that"
            " has trouble; then look at who calls it in 'Quota: TPP analytics'.",
            (
                Query("sum by (endpoint) (increase(open_banking_requests_total{GATEWAY}[$__range]))", "Requests"),
                Query(
                    'sum by (endpoint) (increase(open_banking_requests_total{GATEWAY,status=~"4.."}[$__range]))'
                    " / sum by (endpoint) (increase(open_banking_requests_total{GATEWAY}[$__range]))",
                    "4xx",
                ),
                Query(
                    'sum by (endpoint) (increase(open_banking_requests_total{GATEWAY,status=~"5.."}[$__range]))'
                    " / sum by (endpoint) (increase(open_banking_requests_total{GATEWAY}[$__range]))",
                    "5xx",
                ),
            ),
            "short", "table", 24, 8, GREEN, decimals=0, by=("endpoint",),
            units={"4xx": "percentunit", "5xx": "percentunit"},
        ),
    ),
)  # fmt: skip

TIMES: Final = Row(
    "Times",
    (
        Panel(
            "Request",
            "Head of the request to the end of the answer. The objective is 99 % within 1 s; runbook"
            " QuotaRequestLatencyBudgetBurn. Slow clients and large bodies count too.",
            quantiles("sidecar_request_duration_seconds"),
            "s", steps=above(1),
        ),
        Panel(
            "Credit check",
            "Head of the request to the decided hold, which is one round trip to Valkey. The objective is 99.5 % within"
            " 25 ms; runbook QuotaHoldLatencyBudgetBurn.",
            quantiles("sidecar_hold_duration_seconds"),
            "s", steps=above(0.025),
        ),
        Panel(
            "Requests by duration",
            "How request times are spread. Two bands mean two kinds of requests (a slow route, or a cache that is"
            " missed), a band that rises means that the API or Valkey gets slower for everybody.",
            (
                Query("sum by (le) (increase(sidecar_request_duration_seconds_bucket{GATEWAY}[RATE]))", "{{le}}"),
            ),
            "short", "heatmap",
        ),
    ),
)  # fmt: skip

CONNECTIONS: Final = Row(
    "The API and the connections",
    (
        Panel(
            "Errors of the API",
            "5xx that are not the gateway's own: the API's, and 502 and 504 for it. Nobody is charged for them. Above"
            " 5 % of requests: runbook QuotaUpstreamErrors.",
            (
                Query(
                    f"clamp_min({_SERVER_ERRORS} - {_OWN_FAULTS}, 0) / {_REQUESTS}",
                    "share of requests",
                ),
            ),
            "percentunit", steps=above(0.05),
        ),
        Panel(
            "Connections to the API",
            "Open, idle and awaited ones. Requests that wait for long: the API is slow, or upstream.connections_max is"
            " too low for its latency.",
            (
                Query("sum(sidecar_upstream_connections{GATEWAY})", "open"),
                Query("sum(sidecar_upstream_idle_connections{GATEWAY})", "idle"),
                Query("sum(sidecar_upstream_waiting_requests{GATEWAY})", "requests waiting"),
            ),
        ),
        Panel(
            "Breaks",
            "Answers that the API broke off, requests repeated on a fresh connection, clients that left early. Many"
            " repeats: the API closes idle connections earlier than upstream.keepalive_ms.",
            (
                Query("sum(rate(sidecar_upstream_aborts_total{GATEWAY}[RATE]))", "broken off by the API"),
                Query("sum(rate(sidecar_upstream_retries_total{GATEWAY}[RATE]))", "repeated"),
                Query("sum(rate(sidecar_client_aborts_total{GATEWAY}[RATE]))", "client left"),
            ),
            "ops",
        ),
        Panel(
            "Client connections by gateway",
            "How clients are spread. One gateway with far more than the others: kept-alive connections are not"
            " balanced; limits.requests_per_connection_max closes them from time to time.",
            (Query("sidecar_connections{GATEWAY}", "{{instance}}"),),
        ),
        Panel(
            "New connections",
            "Accepted and refused per second, connections to the API opened, and upgrades (WebSocket). Refused:"
            " limits.connections_max is reached, or the gateway stops. As many new ones as requests: clients do not"
            " keep connections alive.",
            (
                Query("sum(rate(sidecar_connections_accepted_total{GATEWAY}[RATE]))", "accepted"),
                Query("sum(rate(sidecar_connections_refused_total{GATEWAY}[RATE]))", "refused"),
                Query("sum(rate(sidecar_upstream_connects_total{GATEWAY}[RATE]))", "to the API"),
                Query("sum(rate(sidecar_tunnels_total{GATEWAY}[RATE]))", "upgraded"),
            ),
            "ops",
        ),
        Panel(
            "Requests by gateway",
            "How requests are spread. A gateway without any although it is ready: the Service does not know it, or an"
            " old one still takes its connections.",
            (Query("sum by (instance) (rate(open_banking_requests_total{GATEWAY}[RATE]))", "{{instance}}"),),
            "reqps",
        ),
    ),
)  # fmt: skip

DASHBOARD: Final = Dashboard(
    "api-overview",
    "Quota: API overview",
    "Traffic, answers and times of the API behind the quota gateway.",
    (NAMESPACE, INSTANCE),
    (NOW, TRAFFIC, TIMES, CONNECTIONS),
)
