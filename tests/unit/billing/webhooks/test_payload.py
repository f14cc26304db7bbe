"""From the bytes of a webhook to the reload requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.reconcile.reload_requests import NAME_BYTES_MAX
from sidecar.billing.webhooks.event_types import EVENT_TYPES, Action, ObjectKind
from sidecar.billing.webhooks.payload import EnvelopeError, WebhookDecision, WebhookResult, decide, parse
from tests.real_lago import recorded

# lago-api config/webhook_event_types.yml
LAGO_TYPES = """
alert.triggered billable_metric.{created,updated,deleted}
customer.{created,updated,accounting_provider_created,accounting_provider_error,crm_provider_created,crm_provider_error,payment_provider_created,payment_provider_error,checkout_url_generated,tax_provider_error,vies_check}
credit_note.{created,generated,provider_refund_failure} dunning_campaign.finished event.error events.errors
feature.{created,updated,deleted} fee.{created,tax_provider_error}
invoice.{created,one_off_created,paid_credit_added,generated,drafted,ready_to_finalize,voided,deleted,payment_dispute_lost,payment_status_updated,payment_overdue,payment_failure,resynced}
integration.provider_error order.{created,executed} order_form.{created,signed,expired,voided}
payment.{succeeded,requires_action} payment_provider.error payment_receipt.{created,generated}
payment_request.{created,payment_failure,payment_status_updated} plan.{created,updated,deleted}
quote.{created,approved,voided}
subscription.{canceled,incomplete,terminated,started,updated,termination_alert,trial_ended,usage_threshold_reached}
wallet.{created,updated,terminated,depleted_ongoing_balance} wallet_transaction.{created,updated,payment_failure}
"""


def _spread(text: str) -> Iterator[str]:
    for word in text.split():
        prefix, brace, events = word.partition("{")
        yield from (prefix + event for event in events.rstrip("}").split(",")) if brace else (prefix,)


def webhook(type_: str, object_type: str, content: Any) -> bytes:
    return json.dumps(
        {"webhook_type": type_, "object_type": object_type, "organization_id": "o1", object_type: content}
    ).encode()


def decision(type_: str, object_type: str, content: Any) -> WebhookDecision:
    return decide(parse(webhook(type_, object_type, content)))


def reloads(*names: str) -> WebhookDecision:
    return WebhookDecision(WebhookResult.RELOAD, names)


@pytest.mark.parametrize("type_", list(_spread(LAGO_TYPES)))
def test_every_type_of_lago_has_a_rule(type_: str) -> None:
    assert type_ in EVENT_TYPES
    assert parse(webhook(type_, "x", {})).label == type_


@pytest.mark.parametrize(
    "type_", ["credit.exhausted", "invoice.created", "invoice.payment_status_updated", "subscription.terminated"]
)
def test_every_type_of_the_platform_s_page_has_a_rule(type_: str) -> None:
    assert EVENT_TYPES[type_].action is Action.RELOAD


CUSTOMER = {"external_id": "tpp-1"}


@pytest.mark.parametrize(
    ("type_", "object_type", "content", "name"),
    [
        ("wallet.updated", "wallet", {"lago_id": "w1", "external_customer_id": "tpp-1"}, "account:tpp-1"),
        ("wallet.depleted_ongoing_balance", "wallet", {"lago_id": "w1"}, "wallet:w1"),
        (
            "wallet_transaction.updated",
            "wallet_transaction",
            {"lago_wallet_id": "w1", "wallet": {"lago_id": "w1", "external_customer_id": "tpp-1"}},
            "account:tpp-1",
        ),
        ("wallet_transaction.created", "wallet_transaction", {"lago_wallet_id": "w1"}, "wallet:w1"),
        ("wallet_transaction.created", "wallet_transaction", {"wallet": {"lago_id": "w2"}}, "wallet:w2"),
        (
            "wallet_transaction.payment_failure",
            "payment_provider_wallet_transaction_payment_error",
            {"lago_wallet_transaction_id": "t1", "external_customer_id": "tpp-1"},
            "account:tpp-1",
        ),
        ("invoice.created", "invoice", {"customer": CUSTOMER}, "account:tpp-1"),
        ("invoice.drafted", "invoice", {"customer": CUSTOMER}, "account:tpp-1"),
        ("invoice.voided", "invoice", {"customer": CUSTOMER}, "account:tpp-1"),
        ("invoice.payment_dispute_lost", "payment_dispute_lost", {"customer": CUSTOMER}, "account:tpp-1"),
        (
            "invoice.payment_failure",
            "payment_provider_invoice_payment_error",
            {"external_customer_id": "tpp-1"},
            "account:tpp-1",
        ),
        ("subscription.started", "subscription", {"external_customer_id": "tpp-1"}, "account:tpp-1"),
        ("subscription.terminated", "subscription", {"external_id": "sub-1"}, "subscription:sub-1"),
        ("customer.updated", "customer", CUSTOMER, "account:tpp-1"),
        ("customer.vies_check", "customer", CUSTOMER, "account:tpp-1"),
        ("alert.triggered", "triggered_alert", {"external_customer_id": "tpp-1"}, "account:tpp-1"),
        ("alert.triggered", "triggered_alert", {"external_subscription_id": "sub-1"}, "subscription:sub-1"),
        ("fee.created", "fee", {"external_subscription_id": "sub-1"}, "subscription:sub-1"),
        ("plan.updated", "plan", {"code": "pro"}, "plan:pro"),
        ("plan.deleted", "plan", {"code": "Pro plan / 2"}, "plan:Pro plan / 2"),
        ("credit_note.created", "credit_note", {"customer": CUSTOMER}, "account:tpp-1"),
        ("payment.succeeded", "payment", {"external_customer_id": "tpp-1"}, "account:tpp-1"),
        ("payment_request.payment_status_updated", "payment_request", {"customer": CUSTOMER}, "account:tpp-1"),
        ("billable_metric.updated", "billable_metric", {"code": "api_calls"}, "sweep"),
        ("billable_metric.deleted", "billable_metric", None, "sweep"),
        ("credit.exhausted", "wallet", {"lago_id": "w1", "external_customer_id": "tpp-1"}, "account:tpp-1"),
        ("credit.exhausted", "wallet", {"lago_id": "w1"}, "wallet:w1"),
        ("credit.exhausted", "customer", CUSTOMER, "account:tpp-1"),
    ],
)
def test_a_webhook_requests_a_reload_of_whom_it_names(type_: str, object_type: str, content: Any, name: str) -> None:
    assert decision(type_, object_type, content) == reloads(name)


@pytest.mark.parametrize("type_", sorted(type_ for type_, rule in EVENT_TYPES.items() if rule.action is Action.IGNORE))
def test_what_changes_no_funds_or_prices_is_ignored_whatever_is_in_it(type_: str) -> None:
    assert decision(type_, "x", {"external_customer_id": "tpp-1"}) == WebhookDecision(WebhookResult.IGNORE)
    assert decision(type_, "x", None) == WebhookDecision(WebhookResult.IGNORE)


OF_A_CUSTOMER = sorted(
    type_
    for type_, rule in EVENT_TYPES.items()
    if rule.action is Action.RELOAD and any(path.kind is ObjectKind.ACCOUNT for path in rule.name_paths)
)


@pytest.mark.parametrize("type_", OF_A_CUSTOMER)
@pytest.mark.parametrize(
    "content",
    [
        {"external_customer_id": "tpp-1"},
        {"lago_customer_id": "c1", "customer": {"lago_id": "c1", "external_id": "tpp-1"}},
        {"customer": {"external_customer_id": "tpp-1"}},
        {"external_customer_id": None, "customer_external_id": "tpp-1"},
        {"invoice": {"lago_id": "i1", "customer": {"external_id": "tpp-1"}}},
        {"invoice": {"external_customer_id": "tpp-1"}, "provider_error": {"message": "lost"}},
        {"wallet": {"lago_id": "w1", "external_customer_id": "tpp-1"}},
        {"wallet": {"customer": {"external_id": "tpp-1"}}},
        {"wallet_transaction": {"wallet": {"external_customer_id": "tpp-1"}}},
        {"subscription": {"external_id": "sub-1", "external_customer_id": "tpp-1"}},
        {"payment_request": {"customer": {"external_id": "tpp-1"}}},
        {"payable": {"customer": {"external_id": "tpp-1"}}},
        {"subscriptions": [{"external_customer_id": "tpp-1"}, {"external_customer_id": "tpp-1"}]},
        {"customer": None, "fees": [{"external_customer_id": "tpp-1"}]},
        {"invoices": [{"customer": {"external_id": "tpp-1"}}]},
    ],
    ids=lambda content: ",".join(content),
)
def test_a_customer_is_found_wherever_a_version_of_lago_names_it(type_: str, content: dict[str, Any]) -> None:
    assert decision(type_, "x", content) == reloads("account:tpp-1")


@pytest.mark.parametrize(
    ("type_", "content", "name"),
    [
        ("alert.triggered", {"external_customer_id": None, "lago_wallet_id": "w1"}, "wallet:w1"),
        ("alert.triggered", {"subscription_external_id": "sub-1"}, "subscription:sub-1"),
        ("invoice.payment_failure", {"external_subscription_id": "sub-1"}, "subscription:sub-1"),
        ("fee.created", {"subscription": {"external_id": "sub-1"}}, "subscription:sub-1"),
        ("wallet_transaction.payment_failure", {"wallet_transaction": {"lago_wallet_id": "w1"}}, "wallet:w1"),
        ("plan.updated", {"plan": {"code": "pro"}}, "plan:pro"),
    ],
)
def test_without_a_customer_what_else_is_named_is_reloaded(type_: str, content: dict[str, Any], name: str) -> None:
    assert decision(type_, "x", content) == reloads(name)


RECORDED = [pytest.param(body, id=f"{parse(body).type}-{at}") for at, body in enumerate(recorded.webhooks())]
ON_PURPOSE = {
    "credit_note.generated", "customer.checkout_url_generated", "customer.payment_provider_error", "invoice.generated",
    "payment_request.created",
}  # fmt: skip


@pytest.mark.parametrize("body", RECORDED)
def test_every_webhook_that_a_real_lago_sent_names_whom_it_is_about_or_is_ignored_on_purpose(body: bytes) -> None:
    """The customer's id is looked for here by another way: as text, under the names that it can have."""
    webhook = parse(body)
    found = decide(webhook)
    family = webhook.type.partition(".")[0]
    if webhook.type in ON_PURPOSE:
        assert found == WebhookDecision(WebhookResult.IGNORE)
    elif family == "events":
        assert found.result is WebhookResult.NOTE
    elif family == "billable_metric":
        assert found == reloads("sweep"), "a metric is everybody's"
    elif family == "plan":
        assert found == reloads(f"plan:{json.loads(body)['plan']['code']}")
    else:
        names = re.findall(rb'"(?:external_customer_id|customer_external_id)":"([^"]+)"', body)
        names += re.findall(rb'"external_id":"([^"]+)","account_type"', body)
        (name,) = {each.decode() for each in names}
        assert found == reloads(f"account:{name}")


def test_the_recorded_webhooks_are_of_47_types() -> None:
    assert len({parse(body).type for body in recorded.webhooks()}) == 47


RELOADING = sorted(type_ for type_, rule in EVENT_TYPES.items() if rule.action is Action.RELOAD)


@pytest.mark.parametrize("type_", RELOADING)
@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "tpp-1",
        {},
        {"external_customer_id": 7, "external_id": None, "code": "", "lago_id": ["w1"], "customer": "tpp-1"},
        {"external_customer_id": "", "lago_wallet_id": "a\nb", "code": "x" * 300, "external_subscription_id": "\x00"},
    ],
)
def test_a_type_that_names_nobody_is_malformed_not_ignored(type_: str, content: Any) -> None:
    assert decision(type_, "x", content) == WebhookDecision(WebhookResult.MALFORMED)


def test_an_object_under_another_name_than_announced_is_not_looked_at() -> None:
    body = json.dumps({"webhook_type": "customer.updated", "object_type": "customer", "client": CUSTOMER})
    assert decide(parse(body.encode())) == WebhookDecision(WebhookResult.MALFORMED)


@pytest.mark.parametrize("id_", ["ACME Corp", "a/b", "ü", "x" * 129])
def test_a_customer_whose_id_no_caller_can_have_is_foreign(id_: str) -> None:
    assert decision("customer.updated", "customer", {"external_id": id_}) == WebhookDecision(WebhookResult.FOREIGN)


def test_an_unknown_type_counts_as_other_and_requests_a_reload_where_it_names_an_account() -> None:
    parsed = parse(webhook("gift.given", "gift", {"external_customer_id": "tpp-1"}))
    assert (parsed.label, decide(parsed)) == ("other", reloads("account:tpp-1"))
    assert decision("gift.given", "gift", {"wallet": {"external_customer_id": "tpp-1"}}) == reloads("account:tpp-1")
    assert decision("gift.given", "gift", {"external_id": "not-a-customer-s"}) == WebhookDecision(WebhookResult.IGNORE)
    assert decision("gift.given", "gift", {"external_customer_id": "ACME Corp"}) == WebhookDecision(
        WebhookResult.IGNORE
    )
    assert decision("gift.given", "gift", None) == WebhookDecision(WebhookResult.IGNORE)


def test_errors_of_events_are_noted_by_kind_with_how_many_and_a_few_examples() -> None:
    content = {
        "invalid_code": ["om:1", "om:2", "om:3", "om:4"],
        "missing_aggregation_property": ["om:5"],
        "invalid_filter_values": [],
    }
    assert decision("events.errors", "events_errors", content) == WebhookDecision(
        WebhookResult.NOTE, notes=("invalid_code: 4 (om:1, om:2, om:3, …)", "missing_aggregation_property: 1 (om:5)")
    )
    assert decision("event.error", "event_error", {"error": "no_metric", "status": 422}) == WebhookDecision(
        WebhookResult.NOTE, notes=("error: no_metric",)
    )


def test_notes_stay_short_whatever_is_sent() -> None:
    content = {f"{'k' * 500}{n}": ["v" * 500] * 20 for n in range(100)}
    notes = decision("events.errors", "events_errors", content).notes
    assert len(notes) == 16
    assert max(map(len, notes)) < 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"webhook_type":"wallet.updated"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"webhook_type":"\\ud800"}', "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"wallet.updated"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "webhook_type"),
        (b'{"webhook_type":1,"object_type":"wallet"}', "webhook_type"),
        (b'{"webhook_type":"","object_type":"wallet"}', "webhook_type"),
        (b'{"webhook_type":"%s","object_type":"wallet"}' % (b"w" * 129), "webhook_type"),
        (b'{"webhook_type":"wallet.updated"}', "object_type"),
        (b'{"webhook_type":"wallet.updated","object_type":["wallet"]}', "object_type"),
        (b'{"webhook_type":"wallet.updated","object_type":""}', "object_type"),
    ],
)
def test_what_is_no_envelope_is_refused_by_saying_what_is_wrong(body: bytes, words: str) -> None:
    with pytest.raises(EnvelopeError, match=words):
        parse(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["external_customer_id", "customer", "external_id", "wallet", "lago_id", "code", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([*EVENT_TYPES, "new.type"]), _JSON)
def test_whatever_the_object_is_a_webhook_is_read_and_its_reload_requests_have_fit_names(
    type_: str, content: Any
) -> None:
    try:
        found = decision(type_, "thing", content)
    except EnvelopeError:
        return  # a lone surrogate, which is no JSON text
    assert bool(found.reloads) == (found.result is WebhookResult.RELOAD)
    assert all(0 < len(name.encode()) <= NAME_BYTES_MAX for name in found.reloads)


# Against Lago's OpenAPI document, which lies beside the repository, not in it.

DOCUMENT = Path(__file__).resolve().parents[5] / "shared" / "contracts" / "lago-openapi.yaml"


def _documented() -> list[tuple[str, str, Any]]:
    if not DOCUMENT.exists():
        return []
    document = yaml.load(DOCUMENT.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def resolved(schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            at: Any = document
            for step in schema["$ref"].split("/")[1:]:
                at = at[step]
            schema = at
        return schema

    def example(schema: dict[str, Any], depth: int = 0) -> Any:
        schema = resolved(schema)
        merged: dict[str, Any] = {}
        for part in schema.get("allOf", ()):
            value = example(part, depth)
            merged |= value if isinstance(value, dict) else {}
        if "properties" in schema and depth < 6:
            merged |= {name: example(each, depth + 1) for name, each in schema["properties"].items()}
        if merged:
            return merged
        for choice in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
            return example(choice, depth)
        if schema.get("type") == "array":
            return schema.get("example") or [example(schema.get("items", {}), depth + 1)]
        return schema.get("enum", [schema.get("example")])[0]

    found = []
    for each in document["webhooks"].values():
        body = example(each["post"]["requestBody"]["content"]["application/json"]["schema"])
        found.append((body["webhook_type"], body["object_type"], body))
    return found


DOCUMENTED = _documented()


@pytest.mark.skipif(not DOCUMENTED, reason="Lago's OpenAPI document is not beside the repository")
@pytest.mark.parametrize(("type_", "body"), [pytest.param(type_, body, id=type_) for type_, _, body in DOCUMENTED])
def test_every_documented_webhook_is_understood_in_its_documented_form(type_: str, body: Any) -> None:
    rule = EVENT_TYPES[type_]
    found = decide(parse(json.dumps(body, default=str).encode()))
    expected = {
        Action.RELOAD: WebhookResult.RELOAD,
        Action.SWEEP: WebhookResult.RELOAD,
        Action.NOTE: WebhookResult.NOTE,
        Action.IGNORE: WebhookResult.IGNORE,
    }
    assert found.result is expected[rule.action]
    if rule.action is Action.RELOAD:
        (name,) = found.reloads
        # A transaction is the one thing whose documented form need not say whose it is.
        wanted = ("plan:",) if type_.startswith("plan.") else ("account:",)
        assert name.startswith(("wallet:", *wanted) if type_.startswith("wallet_transaction.") else wanted)
