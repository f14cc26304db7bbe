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
            "Requests answered per second, refusals included. If it falls suddenly although all gateways are ready,"
            " check the components in front of them (load balancer, DNS, certificates).",
            (Query(_REQUESTS, "requests"),),
            "reqps", "stat", 4, 4, GREEN,
        ),
        Panel(
            "Answers that are not 5xx",
            "Share of answers without a server error. The gateway's own 503 counts as a server error. Below 99 %, the"
            " panels 'Errors of the API' and 'Refusals by kind' show the cause.",
            (Query(f"1 - {_SERVER_ERRORS} / {_REQUESTS}", "share"),),
            "percentunit", "stat", 4, 4, below(0.95, 0.99), decimals=2,
        ),
        Panel(
            "p95 of a request",
            "Time from the head of the request to the end of the answer, the API's own time included. If it is high"
            " and 'Credit check' is low, the API is slow.",
            (quantiles("sidecar_request_duration_seconds")[1],),
            "s", "stat", 4, 4, above(0.75, 2),
        ),
        Panel(
            "p99 of the credit check",
            "Time from the head of the request to the decided hold. The gateway adds this time to a request. Above 25"
            " ms check Valkey: see the dashboard 'Quota: pipeline health' and the runbook QuotaLedgerSlow.",
            (quantiles("sidecar_hold_duration_seconds")[2],),
            "s", "stat", 4, 4, above(0.025, 0.1),
        ),
        Panel(
            "Refused by the gateway",
            "Share of requests that the gateway refused (401, 402, 403, 404, 429, 503). If it rises and no single TPP"
            " is the cause: runbook QuotaRefusedRateHigh.",
            (Query(f"(sum(rate(sidecar_refusals_total{{GATEWAY}}[RATE])) or vector(0)) / {_REQUESTS}", "share"),),
            "percentunit", "stat", 4, 4, above(0.1, 0.25), decimals=1,
        ),
        Panel(
            "Gateways without Valkey",
            "Gateways whose ledger does not respond in time. They answer 503 to requests that they would charge,"
            " unless they are set to fail open. Runbook QuotaLedgerUnreachable.",
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
            "Answers per second by status. 402: a TPP has no credit. 429: a TPP exceeds its limits. 499: a client"
            " left before its answer. 5xx: see 'Errors of the API' and 'Refusals by kind'.",
            (Query("sum by (status) (rate(open_banking_requests_total{GATEWAY}[RATE]))", "{{status}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Requests by endpoint",
            "The ten busiest routes. '(other)' counts requests that match no route of the configuration. If it grows,"
            " a route is missing and its requests are charged as the default route.",
            (Query("topk(10, sum by (endpoint) (rate(open_banking_requests_total{GATEWAY}[RATE])))", "{{endpoint}}"),),
            "reqps",
        ),
        Panel(
            "Refusals by kind",
            "Requests that the gateway refused itself. out-of-credit and too-many-requests are business."
            " ledger-unavailable, identity-unavailable, overloaded and internal-error are faults of the gateway's"
            " side. upstream-* are faults of the API.",
            (Query("sum by (kind) (rate(sidecar_refusals_total{GATEWAY}[RATE]))", "{{kind}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Endpoints",
            "Requests of each route in the chosen time, and the shares that were refused or failed. Sort by a column"
            " to find the route with errors. Then find its callers in 'Quota: TPP analytics'.",
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
            "Time from the head of the request to the end of the answer. The objective is 99 % within 1 s; runbook"
            " QuotaRequestLatencyBudgetBurn. Slow clients and large bodies count too.",
            quantiles("sidecar_request_duration_seconds"),
            "s", steps=above(1),
        ),
        Panel(
            "Credit check",
            "Time from the head of the request to the decided hold: mostly one round trip to Valkey. The objective is"
            " 99.5 % within 25 ms; runbook QuotaHoldLatencyBudgetBurn.",
            quantiles("sidecar_hold_duration_seconds"),
            "s", steps=above(0.025),
        ),
        Panel(
            "Requests by duration",
            "Distribution of request times. Two bands mean two kinds of requests (a slow route, or cache misses). A"
            " rising band means that the API or Valkey gets slower for all.",
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
            "5xx that are not the gateway's own: 5xx of the API, and 502 and 504 because of the API. They are not"
            " charged, but for 504 on methods that change something. Above 5 % of requests: runbook"
            " QuotaUpstreamErrors.",
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
            "Open and idle connections, and requests that wait for one. If requests wait for long, the API is slow,"
            " or upstream.connections_max is too low for its latency.",
            (
                Query("sum(sidecar_upstream_connections{GATEWAY})", "open"),
                Query("sum(sidecar_upstream_idle_connections{GATEWAY})", "idle"),
                Query("sum(sidecar_upstream_waiting_requests{GATEWAY})", "requests waiting"),
            ),
        ),
        Panel(
            "Aborted answers and retries",
            "Answers that the API aborted, requests retried on a new connection, clients that left early. Many"
            " retries: the API closes idle connections earlier than upstream.keepalive_ms.",
            (
                Query("sum(rate(sidecar_upstream_aborts_total{GATEWAY}[RATE]))", "aborted by the API"),
                Query("sum(rate(sidecar_upstream_retries_total{GATEWAY}[RATE]))", "retried"),
                Query("sum(rate(sidecar_client_aborts_total{GATEWAY}[RATE]))", "client left"),
            ),
            "ops",
        ),
        Panel(
            "Client connections by gateway",
            "Distribution of clients over gateways. If one gateway has far more than the others, clients keep"
            " connections alive and these are not balanced; limits.requests_per_connection_max closes them from time"
            " to time.",
            (Query("sidecar_connections{GATEWAY}", "{{instance}}"),),
        ),
        Panel(
            "New connections",
            "Connections accepted and refused per second, connections opened to the API, and upgrades (WebSocket)."
            " Refused: limits.connections_max is reached, or the gateway stops. If there are as many new connections"
            " as requests, clients do not keep connections alive.",
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
            "Distribution of requests over gateways. If a ready gateway gets none, the Service does not select it, or"
            " clients keep connections to an old gateway.",
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
