"""What each value takes from an answer of Lago."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pytest

from sidecar.billing.lago import credit_requests, parsing, parsing_invoices
from sidecar.billing.lago.errors import LagoMalformed
from sidecar.billing.lago.json_fields import Fields, instant_ms_of
from sidecar.billing.lago.models import (
    AppliedCoupon,
    BillableMetric,
    BillingPeriod,
    Charge,
    ChargeFilter,
    ChargeUsage,
    CreditNote,
    CurrentUsage,
    Customer,
    Event,
    Fee,
    Invoice,
    Subscription,
    Tax,
    Wallet,
    WalletTransaction,
    WebhookEndpoint,
)
from tests.unit.billing.lago import samples


def row(values: dict[str, Any]) -> Fields:
    """As it comes out of an answer's text."""
    return Fields(json.loads(json.dumps(values), parse_float=Decimal), "GET /it")


def ms(text: str) -> int:
    found = instant_ms_of(text)
    assert found is not None
    return found


VAT = Tax("vat", Decimal(20), is_default=False)


def test_a_customer() -> None:
    assert parsing.customer(row(samples.customer())) == Customer(
        "c-tpp-1", "tpp-1", "EUR", "Europe/Paris", {"quota_mode": "prepaid"}, (VAT,)
    )


def test_a_customer_of_an_answer_without_taxes_has_unknown_ones_and_not_none() -> None:
    silent = samples.customer()
    del silent["taxes"]
    assert parsing.customer(row(silent)).taxes is None
    assert parsing.customer(row(samples.customer(taxes=[]))).taxes == ()


def test_a_customer_without_anything_but_ids_is_in_utc() -> None:
    found = parsing.customer(row({"lago_id": "c", "external_id": "x", "metadata": None}))
    assert found == Customer("c", "x", None, "UTC", {}, None)


def test_a_wallet() -> None:
    assert parsing.wallet(row(samples.wallet(expiration_at="2027-01-01T00:00:00Z"))) == Wallet(
        lago_id="w1",
        customer="tpp-1",
        status="active",
        currency="EUR",
        balance_cents=9000,
        credits_balance=Decimal("90.0"),
        consumed_credits=Decimal("10.0"),
        rate_amount=Decimal("1.0"),
        priority=10,
        created_at_ms=ms("2026-07-01T08:59:51Z"),
        expires_at_ms=ms("2027-01-01T00:00:00Z"),
        name="Prepaid",
        code="default",
        fee_types=("charge",),
        metric_codes=("api_calls",),
    )


def test_a_wallet_may_leave_out_what_older_versions_do_not_know() -> None:
    old = samples.wallet(terminated_at="2026-08-02T00:00:00Z", status="terminated", credits_balance=90.5, name=None)
    for name in ("priority", "applies_to", "code"):
        del old[name]
    found = parsing.wallet(row(old))
    assert (found.priority, found.fee_types, found.metric_codes, found.code, found.name) == (50, (), (), None, None)
    assert (found.credits_balance, found.is_active) == (Decimal("90.5"), False)
    assert found.terminated_at_ms == ms("2026-08-02T00:00:00Z")


@pytest.mark.parametrize("cents", [9000, 9000.0, "9000"])
def test_a_balance_is_whole_cents_however_it_is_written(cents: Any) -> None:
    assert parsing.wallet(row(samples.wallet(balance_cents=cents))).balance_cents == 9000


@pytest.mark.parametrize("cents", [9000.5, "90,00", None, True, 10**18 + 1, [9000]])
def test_a_balance_that_is_none_is_refused_by_name(cents: Any) -> None:
    with pytest.raises(LagoMalformed, match=r"balance_cents is not a whole number"):
        parsing.wallet(row(samples.wallet(balance_cents=cents)))


def test_a_coupon_of_a_customer() -> None:
    found = credit_requests.applied_coupon(row(samples.applied_coupon()))
    assert found == AppliedCoupon(
        lago_id="ac1", coupon_id="c1", coupon_code="start", customer="tpp-1", status="active", frequency="once",
        currency="EUR", remaining_cents=300, expires_at_ms=ms("2027-01-01T00:00:00Z"),
    )  # fmt: skip


def test_a_percentage_has_no_amount_that_remains() -> None:
    given = samples.applied_coupon(amount_cents=None, amount_cents_remaining=None, amount_currency=None)
    found = credit_requests.applied_coupon(row(given))
    assert (found.remaining_cents, found.currency) == (None, None)


@pytest.mark.parametrize(
    ("changes", "is_limited"),
    [({}, False), ({"limited_plans": True}, True), ({"limited_billable_metrics": True}, True)],
)
def test_a_coupon_says_whether_it_is_limited(changes: dict[str, Any], is_limited: bool) -> None:
    assert credit_requests.coupon(row(samples.coupon(**changes))).is_limited is is_limited


def test_a_coupon_that_does_not_say_its_limits_may_have_some() -> None:
    older = samples.coupon()
    del older["limited_billable_metrics"]
    assert credit_requests.coupon(row(older)).is_limited


def test_a_credit_note() -> None:
    found = credit_requests.credit_note(row(samples.credit_note()))
    assert found == CreditNote("cn1", "tpp-1", "EUR", "available", 150)


def test_a_priority_of_0_is_kept() -> None:
    assert parsing.wallet(row(samples.wallet(priority=0))).priority == 0


def test_a_wallet_transaction() -> None:
    voided = samples.wallet_transaction(lago_voided_invoice_id="i0", lago_invoice_id=None, settled_at=None)
    assert parsing.wallet_transaction(row(voided)) == WalletTransaction(
        "t1", "w1", "settled", "inbound", "purchased", Decimal("50.0"), ms("2026-08-01T09:59:00Z"), None, None, "i0"
    )
    found = parsing.wallet_transaction(row(samples.wallet_transaction()))
    assert (found.settled_at_ms, found.invoice_id) == (ms("2026-08-01T10:00:00Z"), "i1")


def test_a_charge_keeps_its_properties_with_decimals() -> None:
    properties = {"graduated_ranges": [{"from_value": 0, "to_value": None, "per_unit_amount": "0.1", "flat_amount": 2}]}
    graduated = samples.charge(model="graduated", properties=properties, taxes=[samples.tax()], min_amount_cents=300)
    assert parsing.charge(row(graduated)) == Charge(
        lago_id="ch-api_calls",
        metric_code="api_calls",
        model="graduated",
        properties={
            "graduated_ranges": [
                {"from_value": Decimal(0), "to_value": None, "per_unit_amount": "0.1", "flat_amount": Decimal(2)}
            ]
        },
        min_amount_cents=300,
        taxes=(VAT,),
        code="api_calls_charge",
    )


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({"filters": [{"values": {"region": ["eu"]}}]}, "has_filters"),
        ({"group_properties": [{"group_id": "g"}]}, "has_filters"),
        ({"applied_pricing_unit": {"code": "credits", "conversion_rate": "1.5"}}, "has_pricing_unit"),
        ({"pay_in_advance": True}, "pay_in_advance"),
        ({"prorated": True}, "prorated"),
    ],
)
def test_what_makes_a_charge_special_is_noticed(changes: dict[str, Any], attribute: str) -> None:
    assert getattr(parsing.charge(row(samples.charge())), attribute) is False
    assert getattr(parsing.charge(row(samples.charge(**changes))), attribute) is True


def test_a_charge_is_invoiceable_unless_it_says_otherwise() -> None:
    assert parsing.charge(row(samples.charge())).invoiceable
    assert parsing.charge(row(samples.charge(invoiceable=None))).invoiceable
    assert not parsing.charge(row(samples.charge(invoiceable=False))).invoiceable


def test_a_plan() -> None:
    found = parsing.plan(row(samples.plan(trial_period=7.5, taxes=[samples.tax()], bill_charges_monthly=True)))
    assert (found.code, found.name, found.interval, found.currency) == ("pro", "Pro", "monthly", "EUR")
    assert (found.amount_cents, found.trial_days, found.bill_charges_monthly) == (10000, Decimal("7.5"), True)
    assert found.taxes == (VAT,)
    assert [charge.metric_code for charge in found.charges] == ["api_calls"]
    assert not any((found.has_usage_thresholds, found.has_minimum_commitment, found.has_fixed_charges))


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({"usage_thresholds": [{"amount_cents": 1}]}, "has_usage_thresholds"),
        ({"applicable_usage_thresholds": [{"amount_cents": 1}]}, "has_usage_thresholds"),
        ({"minimum_commitment": {"amount_cents": 1}}, "has_minimum_commitment"),
        ({"fixed_charges": [{"lago_id": "x"}]}, "has_fixed_charges"),
    ],
)
def test_what_makes_a_plan_special_is_noticed(changes: dict[str, Any], attribute: str) -> None:
    assert getattr(parsing.plan(row(samples.plan(**changes))), attribute) is True


def test_a_subscription() -> None:
    assert parsing.subscription(row(samples.subscription())) == Subscription(
        lago_id="s-sub-1",
        external_id="sub-1",
        customer="tpp-1",
        plan_code="pro",
        status="active",
        billing_time="calendar",
        created_at_ms=ms("2026-08-15T09:00:00Z"),
        subscription_at_ms=ms("2026-08-15T09:00:00Z"),
        started_at_ms=ms("2026-08-15T09:00:00.123Z"),
        period_start_ms=ms("2026-08-15T09:00:00Z"),
        period_end_ms=ms("2026-09-01T00:00:00Z"),
        previous_plan_code="basic",
    )


def test_a_subscription_that_is_not_active_has_no_period() -> None:
    ended = samples.subscription(status="terminated", terminated_at="2026-08-20T12:00:00Z")
    found = parsing.subscription(row(ended))
    assert (found.period_start_ms, found.period_end_ms) == (None, None)
    assert found.terminated_at_ms == ms("2026-08-20T12:00:00Z")


def test_a_downgrade_to_come_is_kept() -> None:
    coming = samples.subscription(next_plan_code="basic", downgrade_plan_date="2026-09-01")
    found = parsing.subscription(row(coming))
    assert (found.next_plan_code, found.downgrade_date) == ("basic", "2026-09-01")


@pytest.mark.parametrize(
    ("of_plan", "of_subscription", "expected"),
    [
        ([{"amount_cents": 1}], None, True),
        ([], [{"amount_cents": 1}], True),
        ([{"amount_cents": 1}], [], False),  # progressive billing is disabled for the subscription
        ([], None, False),
    ],
)
def test_the_thresholds_of_a_subscription_come_before_those_of_its_plan(
    of_plan: list[Any], of_subscription: list[Any] | None, expected: bool
) -> None:
    extra: dict[str, Any] = {} if of_subscription is None else {"applicable_usage_thresholds": of_subscription}
    whole = samples.subscription(plan=samples.plan(usage_thresholds=of_plan), **extra)
    plan = parsing.subscription(row(whole)).plan
    assert plan is not None
    assert plan.has_usage_thresholds is expected


def test_a_word_that_is_not_known_is_kept() -> None:
    assert parsing.subscription(row(samples.subscription(status="hibernating"))).status == "hibernating"
    assert parsing.charge(row(samples.charge(model="auction"))).model == "auction"


def test_an_invoice_of_a_list_says_nothing_of_periods_and_fees() -> None:
    assert parsing_invoices.invoice(row(samples.invoice())) == Invoice(
        lago_id="i2",
        number="BANK-0001-001-002",
        type="subscription",
        status="finalized",
        payment_status="pending",
        currency="EUR",
        fees_cents=1000,
        taxes_cents=200,
        prepaid_cents=900,
        total_cents=300,
        due_cents=250,
        issuing_date="2026-08-01",
        created_at_ms=ms("2026-08-01T00:10:09Z"),
        customer="tpp-1",
    )


def test_a_whole_invoice_has_periods_with_exclusive_ends_and_fees() -> None:
    found = parsing_invoices.invoice(row(samples.invoice(is_whole=True)))
    july, august = ms("2026-07-01T00:00:00Z"), ms("2026-08-01T00:00:00Z")
    assert found.periods == (BillingPeriod("s-sub-1", "sub-1", "pro", july, august, "subscription_periodic"),)
    assert found.fees == (
        Fee(
            "f1",
            "charge",
            "api_calls",
            "s-sub-1",
            Decimal("200.0"),
            1000,
            200,
            Decimal("10.0012"),
            july,
            august,
            Decimal(20),
        ),
    )


def test_a_fee_of_another_kind_has_no_metric() -> None:
    plan_fee = samples.fee(item={"type": "subscription", "code": "pro"}, from_date=None, to_date=None)
    (found,) = parsing_invoices.invoice(row(samples.invoice(fees=[plan_fee]))).fees or ()
    assert (found.kind, found.metric_code, found.from_ms, found.to_ms) == ("subscription", None, None, None)


def test_a_billing_period_that_covers_no_usage_is_left_out() -> None:
    whole = samples.invoice(is_whole=True)
    whole["billing_periods"][0] |= {"charges_from_datetime": None, "charges_to_datetime": None}
    assert parsing_invoices.invoice(row(whole)).periods == ()


def test_the_subscriptions_of_an_invoice_name_what_its_periods_do_not() -> None:
    whole = samples.invoice(is_whole=True)
    whole["billing_periods"][0]["external_subscription_id"] = None
    (period,) = parsing_invoices.invoice(row(whole)).periods or ()
    assert period.external_subscription_id == "sub-1"
    whole["subscriptions"] = []
    (period,) = parsing_invoices.invoice(row(whole)).periods or ()
    assert (period.external_subscription_id, period.plan_code) == (None, None)


@pytest.mark.parametrize(
    ("status", "payment_status", "paid", "due"),
    [
        ("finalized", "pending", 50, 250),
        ("finalized", "pending", None, 300),
        ("finalized", "succeeded", None, 0),
        ("voided", "pending", 50, 0),
    ],
)
def test_what_is_due_follows_from_the_rest_if_it_is_not_said(
    status: str, payment_status: str, paid: int | None, due: int
) -> None:
    silent = samples.invoice(status=status, payment_status=payment_status, total_paid_amount_cents=paid)
    del silent["total_due_amount_cents"]
    assert parsing_invoices.invoice(row(silent)).due_cents == due


def test_a_draft_needs_neither_number_nor_date() -> None:
    found = parsing_invoices.invoice(row(samples.invoice(number=None, issuing_date=None, status="draft")))
    assert (found.number, found.issuing_date) == ("", "")


def test_a_voided_invoice_knows_when() -> None:
    voided = samples.invoice(status="voided", voided_at="2026-08-03T00:00:00Z")
    assert parsing_invoices.invoice(row(voided)).voided_at_ms == ms("2026-08-03T00:00:00Z")


def test_current_usage() -> None:
    assert parsing_invoices.current_usage(row(samples.current_usage())) == CurrentUsage(
        from_ms=ms("2026-08-01T00:00:00Z"),
        to_ms=ms("2026-09-01T00:00:00Z"),
        amount_cents=123,
        taxes_cents=25,
        total_cents=148,
        charges=(ChargeUsage("api_calls", "ch-api_calls", Decimal("24.6"), 123, 10),),
    )


def test_a_metric() -> None:
    assert parsing.metric(row(samples.metric())) == BillableMetric(
        "bm-api_calls", "api_calls", "api_calls", "sum_agg", "calls", recurring=False
    )
    computed = parsing.metric(row(samples.metric(expression="a * b", rounding_function="ceil", recurring=True)))
    assert (computed.has_expression, computed.rounding, computed.recurring) == (True, "ceil", True)
    assert not parsing.metric(row(samples.metric(expression=""))).has_expression


def test_an_event_is_in_seconds_exactly() -> None:
    assert parsing.event(row(samples.event())) == Event(
        "om:1",
        "sub-1",
        "api_calls",
        Decimal(ms("2026-08-01T10:00:00.123Z")) / 1000,
        {"calls": Decimal(12), "ratio": Decimal("0.5"), "note": "x"},
    )


def test_an_endpoint_for_all_events_has_none_listed() -> None:
    found = parsing.webhook_endpoint(row(samples.webhook_endpoint()))
    assert found == WebhookEndpoint(
        "we1", "https://quota.bank.example/webhooks/lago", "hmac", ("wallet.updated", "invoice.created"), "quota"
    )
    every = parsing.webhook_endpoint(row(samples.webhook_endpoint(event_types=None, signature_algo=None)))
    assert (every.event_types, every.signature) == (None, "jwt")


def test_the_public_key_is_pem_in_lines_of_base64() -> None:
    pem = b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 200 + b"\n-----END PUBLIC KEY-----\n"
    answer = row({"webhook": {"public_key": base64.encodebytes(pem).decode()}})
    assert parsing.public_key(answer) == pem


@pytest.mark.parametrize("text", ["%%%", base64.b64encode(b"something else").decode(), "QUJ", None, 5])
def test_a_public_key_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(LagoMalformed, match=r"webhook\.public_key"):
        parsing.public_key(row({"webhook": {"public_key": text}}))


def test_a_page() -> None:
    found = parsing.page_of(row(samples.page("taxes", samples.tax(), next_page=3, total=7)), "taxes", parsing.tax, 2)
    assert (found.items, found.next_page, found.total_count) == ((VAT,), 3, 7)


@pytest.mark.parametrize("following", [1, 2])
def test_a_page_that_is_followed_by_an_earlier_one_is_refused(following: int) -> None:
    looping = row(samples.page("taxes", next_page=following))
    with pytest.raises(LagoMalformed, match=r"meta\.next_page is not a page after page 2"):
        parsing.page_of(looping, "taxes", parsing.tax, 2)


@pytest.mark.parametrize("name", ["taxes", "meta"])
def test_a_page_without_its_list_or_its_meta_is_refused(name: str) -> None:
    answer = samples.page("taxes", samples.tax())
    del answer[name]
    with pytest.raises(LagoMalformed, match=f"{name} is not .*: it is missing"):
        parsing.page_of(row(answer), "taxes", parsing.tax, 1)


def test_a_wrong_field_is_named_with_the_position_in_its_list() -> None:
    wrong = samples.page("wallets", samples.wallet(), samples.wallet(currency=5))
    with pytest.raises(LagoMalformed, match=r"^GET /it: wallets\[1\]\.currency is not a text"):
        parsing.page_of(row(wrong), "wallets", parsing.wallet, 1)


REQUIRED = {
    parsing.customer: (samples.customer, {"lago_id", "external_id"}),
    parsing.wallet: (
        samples.wallet,
        {"lago_id", "external_customer_id", "status", "currency", "balance_cents", "credits_balance",
         "consumed_credits", "rate_amount", "created_at"},
    ),
    parsing.wallet_transaction: (
        samples.wallet_transaction,
        {"lago_id", "lago_wallet_id", "status", "transaction_type", "transaction_status", "amount", "created_at"},
    ),
    parsing.subscription: (
        samples.subscription,
        {"lago_id", "external_id", "external_customer_id", "plan_code", "status", "billing_time", "created_at"},
    ),
    parsing.plan: (samples.plan, {"lago_id", "code", "name", "amount_cents", "amount_currency"}),
    parsing.charge: (samples.charge, {"lago_id", "billable_metric_code", "charge_model"}),
    parsing_invoices.invoice: (
        samples.invoice,
        {"lago_id", "invoice_type", "status", "payment_status", "currency", "fees_amount_cents", "taxes_amount_cents",
         "total_amount_cents", "created_at"},
    ),
    parsing_invoices.current_usage: (
        samples.current_usage,
        {"from_datetime", "to_datetime", "amount_cents", "taxes_amount_cents", "total_amount_cents", "charges_usage"},
    ),
    parsing.event: (samples.event, {"transaction_id", "code", "timestamp"}),
    parsing.metric: (samples.metric, {"lago_id", "code", "name", "aggregation_type"}),
    parsing.tax: (samples.tax, {"code", "rate"}),
    parsing.webhook_endpoint: (samples.webhook_endpoint, {"lago_id", "webhook_url"}),
}  # fmt: skip


@pytest.mark.parametrize("parse", REQUIRED, ids=lambda parse: parse.__name__)
def test_exactly_what_cannot_be_done_without_is_required(parse: Any) -> None:
    sample, required = REQUIRED[parse]
    for name in sample():
        without = {key: value for key, value in sample().items() if key != name}
        for answer in (without, without | {name: None}):
            if name in required:
                with pytest.raises(LagoMalformed, match=f"{name} is not"):
                    parse(row(answer))
            else:
                parse(row(answer))


# Filters and groups


def test_a_filter_of_a_charge_keeps_its_values_and_its_price() -> None:
    given = {"lago_id": "f", "values": {"scheme": ["sepa", "swift"]}, "properties": {"amount": "0.25"}}
    found = parsing.charge(row(samples.charge(filters=[given])))
    assert found.has_filters
    assert found.filters == (ChargeFilter({"scheme": ("sepa", "swift")}, {"amount": "0.25"}),)


def test_a_billable_metric_lists_the_values_of_its_filters() -> None:
    found = parsing.metric(row(samples.metric(filters=[{"key": "scheme", "values": ["sepa", "swift"]}])))
    assert found.filters == {"scheme": ("sepa", "swift")}


@pytest.mark.parametrize(
    ("item", "filter_", "group"),
    [
        ({"filters": None, "grouped_by": {}}, None, ()),
        ({"filters": {}}, None, ()),
        ({"filters": {"b": ["2", "1"], "a": ["x"]}}, (("a", ("x",)), ("b", ("1", "2"))), ()),
        ({"grouped_by": {"region": None, "product": "cards"}}, None, (("product", "cards"), ("region", None))),
    ],
)
def test_a_fee_says_which_filter_and_group_it_bills(item: dict[str, Any], filter_: Any, group: Any) -> None:
    fee = samples.fee()
    invoice = parsing_invoices.invoice(row(samples.invoice(is_whole=True, fees=[{**fee, "item": fee["item"] | item}])))
    assert invoice.fees is not None
    assert (invoice.fees[0].filter, invoice.fees[0].group) == (filter_, group)


def _used(units: str, **more: Any) -> dict[str, Any]:
    return {"units": units, "events_count": 1, "amount_cents": 1, **more}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ()),
        (
            {"filters": [_used("2.0", values={"a": ["x"]}), _used("1.0", values=None)]},
            (((("a", ("x",)),), (), 2), (None, (), 1)),
        ),
        (
            {"grouped_usage": [_used("3.0", grouped_by={"g": "1"}, filters=[])]},
            ((None, (("g", "1"),), 3),),
        ),
        (
            {
                "filters": [_used("3.0", values={"a": ["x"]})],
                "grouped_usage": [
                    _used("2.0", grouped_by={"g": "1"}, filters=[_used("2.0", values={"a": ["x"]})]),
                    _used("1.0", grouped_by={}, filters=[_used("1.0", values=None)]),
                ],
            },
            (((("a", ("x",)),), (("g", "1"),), 2), (None, (), 1)),
        ),
    ],
)  # fmt: skip
def test_current_usage_is_split_into_what_becomes_a_fee(more: dict[str, Any], expected: Any) -> None:
    given = samples.current_usage()
    given["charges_usage"][0] |= more
    (charge,) = parsing_invoices.current_usage(row(given)).charges
    assert tuple((fee.filter, fee.group, int(fee.units)) for fee in charge.fees) == expected
