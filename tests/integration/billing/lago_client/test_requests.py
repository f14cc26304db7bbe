"""What each method asks of Lago, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoMalformed, LagoRejected, LagoUnavailable
from sidecar.billing.lago.models import Event, Tax
from tests.integration.billing.lago_client.kit import KEY, Reply, Request, talking
from tests.unit.billing.lago import samples

PAGED = [("page", "1"), ("per_page", "100")]


def absent(what: str, status: int = 404) -> Reply:
    return status, {"status": status, "error": "Not Found", "code": what}


ONE: list[tuple[Callable[[LagoClient], Any], str, dict[str, Any], str]] = [
    (lambda c: c.customer("tpp-1"), "/customers/tpp-1", {"customer": samples.customer()}, "customer_not_found"),
    (lambda c: c.wallet("w1"), "/wallets/w1", {"wallet": samples.wallet()}, "wallet_not_found"),
    (
        lambda c: c.subscription("sub-1"),
        "/subscriptions/sub-1",
        {"subscription": samples.subscription(plan=samples.plan())},
        "subscription_not_found",
    ),
    (lambda c: c.plan("pro"), "/plans/pro", {"plan": samples.plan()}, "plan_not_found"),
    (
        lambda c: c.metric("api_calls"),
        "/billable_metrics/api_calls",
        {"billable_metric": samples.metric()},
        "billable_metric_not_found",
    ),
    (lambda c: c.invoice("i2"), "/invoices/i2", {"invoice": samples.invoice(is_whole=True)}, "invoice_not_found"),
    (lambda c: c.event("om:1"), "/events/om%3A1", {"event": samples.event()}, "event_not_found"),
    (
        lambda c: c.current_usage("tpp-1", "sub-1"),
        "/customers/tpp-1/current_usage",
        {"customer_usage": samples.current_usage()},
        "customer_not_found",
    ),
]


@pytest.mark.parametrize(("ask", "path", "answer", "code"), ONE, ids=[path for _, path, _, _ in ONE])
async def test_one_object_is_found_by_its_path_or_is_not_there(
    ask: Callable[[LagoClient], Any], path: str, answer: dict[str, Any], code: str
) -> None:
    async with talking([(200, answer), absent(code), absent("resource_not_found"), (404, b"<html>")]) as (client, lago):
        assert await ask(client) is not None
        assert lago.lines == [f"GET {path}"]
        assert lago.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert lago.requests[0].headers["user-agent"] == "quota-sidecar"
        assert await ask(client) is None
        # What a wrong URL finds, or a proxy says, does not mean that the object is gone.
        with pytest.raises(LagoRejected, match="resource_not_found"):
            await ask(client)
        with pytest.raises(LagoMalformed):
            await ask(client)


@pytest.mark.parametrize("reply", [absent("no_active_subscription", 405), absent("subscription_not_found")])
async def test_without_an_active_subscription_there_is_no_usage(reply: Reply) -> None:
    async with talking([reply]) as (client, lago):
        assert await client.current_usage("tpp-1", "sub 1", apply_taxes=False) is None
    assert lago.requests[0].query == [("external_subscription_id", "sub 1"), ("apply_taxes", "false")]


async def test_another_status_of_a_subscription_can_be_asked_for() -> None:
    async with talking([(200, {"subscription": samples.subscription(status="terminated")})]) as (client, lago):
        found = await client.subscription("sub-1", status="terminated")
    assert found is not None
    assert found.status == "terminated"
    assert lago.requests[0].query == [("status", "terminated")]


@pytest.mark.parametrize(
    ("external_id", "path"),
    [
        ("PSDGB-FCA-123456", "PSDGB-FCA-123456"),
        ("a/b", "a%2Fb"),
        ("a b", "a%20b"),
        ("é?x=1#y", "%C3%A9%3Fx%3D1%23y"),
        ("%2e%2e", "%252e%252e"),
        ("acme.example", "acme%2Eexample"),
        ("...", "%2E%2E%2E"),
        ("+&;", "%2B%26%3B"),
    ],
)
async def test_an_id_is_one_segment_of_the_path_whatever_it_holds(external_id: str, path: str) -> None:
    async with talking([(200, {"customer": samples.customer(external_id)})]) as (client, lago):
        found = await client.customer(external_id)
    assert found is not None
    assert found.external_id == external_id
    assert lago.lines == [f"GET /customers/{path}"]


@pytest.mark.parametrize("external_id", ["", ".", "..", "\ud800", "x" * 1025])
async def test_an_id_that_no_path_can_hold_is_not_asked_for(external_id: str) -> None:
    async with talking([(500, b"")]) as (client, lago):
        assert await client.customer(external_id) is None
        assert await client.wallet_transactions(external_id) == ()
        with pytest.raises(LagoRejected, match="no path can hold this id"):
            await client.update_plan(external_id, {})
    assert lago.requests == []


async def test_half_a_surrogate_pair_in_a_query_is_refused_and_not_sent() -> None:
    async with talking([(500, b"")]) as (client, lago):
        with pytest.raises(LagoRejected, match="surrogate"):
            await client.wallets("\ud800")
    assert lago.requests == []


Lists = list[tuple[Callable[[LagoClient], Any], str, str, list[dict[str, Any]], list[tuple[str, str]]]]

LISTS: Lists = [
    (
        lambda c: c.wallets("tpp/1"),
        "/wallets",
        "wallets",
        [
            samples.wallet("w1", external_customer_id="tpp/1"),
            samples.wallet("w2", external_customer_id="tpp/1", status="terminated"),
        ],
        [("external_customer_id", "tpp/1")],
    ),
    (
        lambda c: c.wallet_transactions("w1", status="settled", transaction_status="invoiced"),
        "/wallets/w1/wallet_transactions",
        "wallet_transactions",
        [samples.wallet_transaction("t1"), samples.wallet_transaction("t2")],
        [("status", "settled"), ("transaction_status", "invoiced")],
    ),
    (
        lambda c: c.subscriptions("tpp-1"),
        "/subscriptions",
        "subscriptions",
        [samples.subscription("a"), samples.subscription("b")],
        [("external_customer_id", "tpp-1"), ("status[]", "active"), ("status[]", "pending"),
         ("status[]", "terminated")],
    ),
    (
        lambda c: c.billable_metrics(),
        "/billable_metrics",
        "billable_metrics",
        [samples.metric("a"), samples.metric("b")],
        [],
    ),
    (
        lambda c: c.applied_coupons("tpp-1"),
        "/applied_coupons",
        "applied_coupons",
        [samples.applied_coupon("a"), samples.applied_coupon("b")],
        [("external_customer_id", "tpp-1"), ("status", "active")],
    ),
    (
        lambda c: c.credit_notes("tpp-1"),
        "/credit_notes",
        "credit_notes",
        [samples.credit_note("a"), samples.credit_note("b")],
        [("external_customer_id", "tpp-1"), ("credit_status", "available")],
    ),
    (lambda c: c.taxes(), "/taxes", "taxes", [samples.tax("a"), samples.tax("b")], []),
    (
        lambda c: c.webhook_endpoints(),
        "/webhook_endpoints",
        "webhook_endpoints",
        [samples.webhook_endpoint(), samples.webhook_endpoint(lago_id="we2")],
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "path", "name", "rows", "query"), LISTS, ids=[each[1] for each in LISTS])
async def test_a_whole_list_is_read_page_by_page(
    ask: Callable[[LagoClient], Any],
    path: str,
    name: str,
    rows: list[dict[str, Any]],
    query: list[tuple[str, str]],
) -> None:
    replies = [
        (200, samples.page(name, rows[0], next_page=2, total=2)),
        (200, samples.page(name, rows[1], total=2, current=2)),
    ]
    async with talking(replies) as (client, lago):
        found = await ask(client)
        assert len(found) == 2
        assert found[0] != found[1]
    assert lago.lines == [f"GET {path}"] * 2
    assert [each.query for each in lago.requests] == [[*query, *PAGED], [*query, ("page", "2"), ("per_page", "100")]]


@pytest.mark.parametrize(
    ("ask", "name", "row"),
    [
        (lambda c: c.wallets("tpp-2"), "wallets", samples.wallet()),
        (lambda c: c.subscriptions("tpp-2"), "subscriptions", samples.subscription()),
        (lambda c: c.invoices("tpp-2"), "invoices", samples.invoice()),
        (lambda c: c.applied_coupons("tpp-2"), "applied_coupons", samples.applied_coupon()),
        (lambda c: c.credit_notes("tpp-2"), "credit_notes", samples.credit_note()),
    ],
)
async def test_a_list_that_is_not_of_the_customer_who_was_asked_for_is_refused(
    ask: Callable[[LagoClient], Any], name: str, row: dict[str, Any]
) -> None:
    async with talking([(200, samples.page(name, row))]) as (client, _):
        with pytest.raises(LagoMalformed, match=r"is of customer 'tpp-1', not of 'tpp-2'"):
            await ask(client)


async def test_an_empty_list_is_one() -> None:
    async with talking([(200, samples.page("wallets"))]) as (client, _):
        assert await client.wallets("tpp-1") == ()


async def test_an_unknown_customer_has_no_wallets_and_an_unknown_wallet_no_transactions() -> None:
    async with talking([absent("customer_not_found"), absent("wallet_not_found"), absent("resource_not_found")]) as (
        client,
        _,
    ):
        assert await client.wallets("nobody") == ()
        assert await client.wallet_transactions("none") == ()
        with pytest.raises(LagoRejected):
            await client.wallets("nobody")


async def test_a_list_that_changes_between_two_pages_is_read_again() -> None:
    """What goes moves the others forward, and one of them is never seen; what comes moves them back."""
    first, second, third = (samples.wallet_transaction(f"t{i}") for i in range(3))
    replies = [
        (200, samples.page("wallet_transactions", first, next_page=2, total=3)),
        (200, samples.page("wallet_transactions", third, total=3, current=2)),
        (200, samples.page("wallet_transactions", first, second, next_page=2, total=3)),
        (200, samples.page("wallet_transactions", second, third, total=3, current=2)),
    ]
    async with talking(replies) as (client, lago):
        found = await client.wallet_transactions("w1")
    assert [each.lago_id for each in found] == ["t0", "t1", "t2"]
    assert len(lago.requests) == 4


async def test_a_list_that_never_holds_still_is_an_outage() -> None:
    async with talking([(200, samples.page("wallets", samples.wallet(), total=2))]) as (client, lago):
        with pytest.raises(LagoUnavailable, match="GET /wallets: the list keeps changing"):
            await client.wallets("tpp-1")
    assert len(lago.requests) == 4


async def test_a_list_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.billing.lago.client.PAGES_MAX", 5)

    def endless(request: Request) -> Reply:
        page = int(dict(request.query)["page"])
        return 200, samples.page("wallets", samples.wallet(f"w{page}"), next_page=page + 1, total=10**6)

    async with talking(endless) as (client, lago):
        with pytest.raises(LagoMalformed, match="more than 5 pages"):
            await client.wallets("tpp-1")
    assert len(lago.requests) == 5


async def test_pages_of_all_customers_can_be_read_one_at_a_time() -> None:
    def script(request: Request) -> Reply:
        name = request.path[1:]
        rows = {
            "customers": samples.customer(),
            "wallets": samples.wallet(),
            "subscriptions": samples.subscription(),
            "plans": samples.plan(),
        }
        return 200, samples.page(name, rows[name], next_page=4, total=350, current=3)

    async with talking(script) as (client, lago):
        pages: list[Any] = [
            await client.customers(3),
            await client.customers(3, per_page=50),
            await client.wallets_page(3),
            await client.subscriptions_page(3),
            await client.subscriptions_page(3, statuses=("active", "pending"), plan_code="pro", per_page=10),
            await client.plans_page(3),
        ]
    assert {(page.next_page, page.total_count, len(page.items)) for page in pages} == {(4, 350, 1)}
    third = [("page", "3"), ("per_page", "100")]
    assert [(each.path, each.query) for each in lago.requests] == [
        ("/customers", third),
        ("/customers", [("page", "3"), ("per_page", "50")]),
        ("/wallets", third),
        ("/subscriptions", [("status[]", "active"), *third]),
        (
            "/subscriptions",
            [("status[]", "active"), ("status[]", "pending"), ("plan_code", "pro"), ("page", "3"), ("per_page", "10")],
        ),
        ("/plans", third),
    ]


async def test_of_invoices_the_newest_are_read_up_to_a_limit() -> None:
    def script(request: Request) -> Reply:
        page, per_page = (int(dict(request.query)[name]) for name in ("page", "per_page"))
        rows = [samples.invoice(f"i{n}") for n in range((page - 1) * per_page, page * per_page)]
        return 200, samples.page("invoices", *rows, next_page=page + 1, total=10_000)

    async with talking(script) as (client, lago):
        few = await client.invoices("tpp-1", limit=3)
        many = await client.invoices("tpp-1", statuses=("finalized", "draft"), type=None, limit=150)
    assert [each.lago_id for each in few] == ["i0", "i1", "i2"]
    assert [each.lago_id for each in many] == [f"i{n}" for n in range(150)]
    who = ("external_customer_id", "tpp-1")
    assert [each.query for each in lago.requests] == [
        [who, ("invoice_type", "subscription"), ("page", "1"), ("per_page", "3")],
        [who, ("statuses[]", "finalized"), ("statuses[]", "draft"), *PAGED],
        [who, ("statuses[]", "finalized"), ("statuses[]", "draft"), ("page", "2"), ("per_page", "100")],
    ]


async def test_an_invoice_that_is_made_meanwhile_does_not_come_twice_and_an_empty_page_is_the_end() -> None:
    """The count of invoices is kept for half an hour in Lago, so a page may be announced that is empty."""
    replies = [
        (200, samples.page("invoices", samples.invoice("i0"), samples.invoice("i1"), next_page=2, total=300)),
        (200, samples.page("invoices", samples.invoice("i1"), samples.invoice("i2"), next_page=3, total=300)),
        (200, samples.page("invoices", next_page=4, total=300)),
    ]
    async with talking(replies) as (client, lago):
        assert [each.lago_id for each in await client.invoices("tpp-1")] == ["i0", "i1", "i2"]
    assert len(lago.requests) == 3


EVENTS = [
    Event("om:1", "sub-1", "api_calls", Decimal("1785543009.123"), {"calls": Decimal(12), "ratio": Decimal("0.50")}),
    Event("om:2", "sub-1", "api_calls", Decimal(1785543009), {"calls": 3, "deep": {"a": [Decimal("1E+2")]}}),
]


async def test_events_are_sent_with_exact_times_and_amounts() -> None:
    answer = {"events": [samples.event("om:1"), samples.event("om:2")]}
    async with talking([(200, answer), (200, {"event": samples.event("om:1")})]) as (client, lago):
        await client.send_events(EVENTS)
        await client.send_event(EVENTS[0])
    first = {
        "transaction_id": "om:1",
        "external_subscription_id": "sub-1",
        "code": "api_calls",
        "timestamp": "1785543009.123",
        "properties": {"calls": 12, "ratio": "0.50"},
    }
    second = {
        "transaction_id": "om:2",
        "external_subscription_id": "sub-1",
        "code": "api_calls",
        "timestamp": "1785543009",
        "properties": {"calls": 3, "deep": {"a": [100]}},
    }
    assert [(each.method, each.path, each.body) for each in lago.requests] == [
        ("POST", "/events/batch", {"events": [first, second]}),
        ("POST", "/events", {"event": first}),
    ]
    assert lago.requests[0].headers["content-type"] == "application/json"


async def test_a_batch_that_is_refused_says_why_by_position() -> None:
    details = {"1": {"transaction_id": ["value_already_exist"]}}
    body = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details}
    async with talking([(422, body)]) as (client, lago):
        with pytest.raises(LagoRejected) as refused:
            await client.send_events(EVENTS)
    assert refused.value.events == {1: {"transaction_id": ("value_already_exist",)}}
    assert (refused.value.status, refused.value.code) == (422, "validation_errors")
    assert len(lago.requests) == 1


@pytest.mark.parametrize("answer", [{"events": [samples.event()]}, {}, {"events": None}])
async def test_a_batch_is_not_taken_for_sent_unless_lago_says_all_of_it(answer: dict[str, Any]) -> None:
    async with talking([(200, answer)]) as (client, _):
        with pytest.raises(LagoMalformed, match="POST /events/batch: events is not a list"):
            await client.send_events(EVENTS)


async def test_the_public_key() -> None:
    pem = b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 100 + b"\n-----END PUBLIC KEY-----\n"
    async with talking([(200, {"webhook": {"public_key": base64.encodebytes(pem).decode()}})]) as (client, lago):
        assert await client.public_key() == pem
    assert lago.lines == ["GET /webhooks/json_public_key"]


WRITES: list[tuple[Callable[[LagoClient], Any], str, Any, Any]] = [
    (
        lambda c: c.create_customer({"external_id": "x"}),
        "POST /customers",
        {"customer": {"external_id": "x"}},
        {"customer": samples.customer()},
    ),
    (
        lambda c: c.create_wallet({"granted_credits": Decimal("10.5")}),
        "POST /wallets",
        {"wallet": {"granted_credits": "10.5"}},
        {"wallet": samples.wallet()},
    ),
    (
        lambda c: c.top_up({"wallet_id": "w1", "paid_credits": "5"}),
        "POST /wallet_transactions",
        {"wallet_transaction": {"wallet_id": "w1", "paid_credits": "5"}},
        {"wallet_transactions": [samples.wallet_transaction()]},
    ),
    (
        lambda c: c.create_subscription({"plan_code": "pro"}),
        "POST /subscriptions",
        {"subscription": {"plan_code": "pro"}},
        {"subscription": samples.subscription()},
    ),
    (
        lambda c: c.create_metric({"code": "m"}),
        "POST /billable_metrics",
        {"billable_metric": {"code": "m"}},
        {"billable_metric": samples.metric()},
    ),
    (
        lambda c: c.update_metric("a/b", {"name": "m"}),
        "PUT /billable_metrics/a%2Fb",
        {"billable_metric": {"name": "m"}},
        {"billable_metric": samples.metric("a/b")},
    ),
    (lambda c: c.create_plan({"code": "p"}), "POST /plans", {"plan": {"code": "p"}}, {"plan": samples.plan()}),
    (lambda c: c.update_plan("p", {"name": "P"}), "PUT /plans/p", {"plan": {"name": "P"}}, {"plan": samples.plan("p")}),
    (lambda c: c.create_tax({"rate": "20"}), "POST /taxes", {"tax": {"rate": "20"}}, {"tax": samples.tax()}),
    (
        lambda c: c.create_webhook_endpoint({"webhook_url": "u"}),
        "POST /webhook_endpoints",
        {"webhook_endpoint": {"webhook_url": "u"}},
        {"webhook_endpoint": samples.webhook_endpoint()},
    ),
    (
        lambda c: c.update_webhook_endpoint("we1", {"name": "n"}),
        "PUT /webhook_endpoints/we1",
        {"webhook_endpoint": {"name": "n"}},
        {"webhook_endpoint": samples.webhook_endpoint()},
    ),
    (lambda c: c.create("/add_ons", {"add_on": {}}), "POST /add_ons", {"add_on": {}}, {"add_on": {}}),
    (lambda c: c.update("/taxes/a%2Fb", {"tax": {}}), "PUT /taxes/a%2Fb", {"tax": {}}, {"tax": {}}),
]


@pytest.mark.parametrize(("write", "line", "body", "answer"), WRITES, ids=[each[1] for each in WRITES])
async def test_what_is_written_goes_as_lago_documents_it(
    write: Callable[[LagoClient], Any], line: str, body: Any, answer: Any
) -> None:
    refused = {"status": 422, "code": "validation_errors", "error_details": {"code": ["value_already_exist"]}}
    async with talking([(200, answer), (422, refused), absent("plan_not_found")]) as (client, lago):
        assert await write(client)
        assert lago.lines == [line]
        assert lago.requests[0].body == body
        with pytest.raises(LagoRejected) as rejected:
            await write(client)
        assert rejected.value.codes == {"code": ("value_already_exist",)}
        with pytest.raises(LagoRejected, match="plan_not_found"):
            await write(client)
    assert len(lago.requests) == 3


async def test_what_is_deleted_is_deleted_once() -> None:
    answers = [(200, {"plan": {}}), absent("plan_not_found"), (405, {"status": 405, "code": "not_allowed"})]
    async with talking(answers) as (client, lago):
        assert await client.delete("/plans/a%2Fb", [("on_termination_invoice", "skip")])
        assert lago.lines == ["DELETE /plans/a%2Fb"]
        assert lago.requests[0].query == [("on_termination_invoice", "skip")]
        assert not await client.delete("/plans/a%2Fb")
        with pytest.raises(LagoRejected, match="not_allowed"):
            await client.delete("/plans/a%2Fb")
    assert client.metrics.requests == {"DELETE /plans/{id}": 3}


@pytest.mark.parametrize(
    ("amount", "sent"), [("0.00000001", "0.00000001"), ("1E-8", "0.00000001"), ("1E+2", 100), ("-0.50", "-0.50")]
)
async def test_decimals_are_sent_in_plain_digits(amount: str, sent: object) -> None:
    async with talking([(200, {})]) as (client, lago):
        await client.create("/plans", {"plan": MappingProxyType({"amount": Decimal(amount)})})
    assert lago.requests[0].body == {"plan": {"amount": sent}}


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), object(), b"bytes"])
async def test_what_json_cannot_hold_is_not_sent(value: object) -> None:
    async with talking([(200, {})]) as (client, lago):
        with pytest.raises(TypeError, match="cannot be sent to Lago"):
            await client.create("/plans", {"plan": {"amount": value}})
    assert lago.requests == []


async def test_the_parsed_values_come_through() -> None:
    async with talking([(200, samples.page("taxes", samples.tax(rate=8.875, applied_to_organization=True)))]) as (
        client,
        _,
    ):
        assert await client.taxes() == (Tax("vat", Decimal("8.875"), is_default=True),)


async def test_requests_are_counted_by_endpoint_and_not_by_id() -> None:
    async with talking([(200, {"customer": samples.customer()})]) as (client, _):
        for _ in range(5):
            await client.customer("tpp-1")
        await client.update("/taxes/vat", {})
    assert client.metrics.requests == {"GET /customers/{id}": 5, "PUT /taxes/{id}": 1}
    assert not client.metrics.failures


async def test_many_tasks_may_use_one_client_and_no_more_than_the_limit_are_under_way() -> None:
    under_way, most = 0, 0

    async def script(request: Request) -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return 200, {"customer": samples.customer(request.path.rsplit("/", 1)[1])}

    async with talking(script, requests_in_flight_max=3) as (client, _):
        found = await asyncio.gather(*(client.customer(f"tpp-{n}") for n in range(30)))
    assert [each.external_id for each in found if each] == [f"tpp-{n}" for n in range(30)]
    assert most == 3
