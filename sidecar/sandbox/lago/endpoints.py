"""``/webhook_endpoints`` and ``/webhooks`` of the Lago stand-in. Source: lago-api ``app/models/webhook_endpoint.rb``,
``config/webhook_event_types.yml``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, not_found, page
from sidecar.sandbox.lago.records import Endpoint
from sidecar.sandbox.lago.signatures import Signatures
from sidecar.sandbox.lago.views import endpoint_view

ENDPOINTS_MAX = 10
_GROUPS = {
    "alert": "triggered",
    "billable_metric": "created updated deleted",
    "credit_note": "created generated provider_refund_failure",
    "customer": "created updated accounting_provider_created accounting_provider_error crm_provider_created"
    " crm_provider_error payment_provider_created payment_provider_error checkout_url_generated tax_provider_error"
    " vies_check",
    "dunning_campaign": "finished",
    "event": "error",
    "events": "errors",
    "feature": "created updated deleted",
    "fee": "created tax_provider_error",
    "integration": "provider_error",
    "invoice": "created one_off_created paid_credit_added generated drafted ready_to_finalize voided deleted"
    " payment_dispute_lost payment_status_updated payment_overdue payment_failure resynced",
    "order": "created executed",
    "order_form": "created signed expired voided",
    "payment": "succeeded requires_action",
    "payment_provider": "error",
    "payment_receipt": "created generated",
    "payment_request": "created payment_failure payment_status_updated",
    "plan": "created updated deleted",
    "quote": "created approved voided",
    "subscription": "canceled incomplete terminated started updated termination_alert trial_ended"
    " usage_threshold_reached",
    "wallet": "created updated terminated depleted_ongoing_balance",
    "wallet_transaction": "created updated payment_failure",
}
EVENT_TYPES = frozenset(f"{group}.{name}" for group, names in _GROUPS.items() for name in names.split())


class EndpointsApi:
    def __init__(self, store: Store, signatures: Signatures) -> None:
        self._store = store
        self._signatures = signatures

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("webhook_endpoint"))
        if len(self._store.endpoints) >= ENDPOINTS_MAX:
            fields.error("base", "exceeded_limit")
        endpoint = Endpoint(**self._store.new(), url="", algorithm="jwt")
        self._assign(endpoint, fields)
        self._store.endpoints[endpoint.id] = endpoint
        return self._show(endpoint)

    def update(self, call: Call) -> Json:
        endpoint = self._find(call)
        self._assign(endpoint, Fields(call.root("webhook_endpoint")))
        return self._show(endpoint)

    def _assign(self, endpoint: Endpoint, fields: Fields) -> None:
        url = fields.text("webhook_url", endpoint.url or None)
        if not url:
            fields.errors["webhook_url"] = ["value_is_mandatory"]
        elif not _is_url(url):
            fields.error("webhook_url", "url_invalid")
        elif any(item.url == url and item is not endpoint for item in self._store.endpoints.values()):
            fields.error("webhook_url", "value_already_exist")
        algorithm = fields.choice("signature_algo", ("jwt", "hmac"), endpoint.algorithm)
        name = fields.text("name", endpoint.name)
        types = self._types(fields) if "event_types" in fields else endpoint.event_types
        fields.check()
        endpoint.url, endpoint.algorithm, endpoint.name, endpoint.event_types = url or "", algorithm, name, types

    def _types(self, fields: Fields) -> tuple[str, ...] | None:
        """None for all, which is also what ``["*"]`` means."""
        given = fields.given.get("event_types")
        if given is None:
            return None
        if not isinstance(given, list):
            fields.error("event_types", "must_be_array")
            return None
        types = tuple(dict.fromkeys(str(item).strip().lower() for item in given if str(item).strip()))
        if types == ("*",):
            return None
        if not all(item in EVENT_TYPES for item in types):
            fields.error("event_types", "invalid_types")
        return types

    def get(self, call: Call) -> Json:
        return self._show(self._find(call))

    def list(self, call: Call) -> Json:
        found = newest_first(self._store.endpoints.values())
        return page(call, "webhook_endpoints", found, self._view)

    def delete(self, call: Call) -> Json:
        endpoint = self._find(call)
        del self._store.endpoints[endpoint.id]
        return self._show(endpoint)

    def json_public_key(self, call: Call) -> Json:
        return {"webhook": {"public_key": self._signatures.public_key_base64()}}

    def public_key(self, call: Call) -> str:
        """Plain text; deprecated."""
        return self._signatures.public_key_base64()

    def _find(self, call: Call) -> Endpoint:
        found = self._store.endpoints.get(call.path["lago_id"])
        if found is None:
            raise not_found("webhook_endpoint")
        return found

    def _view(self, endpoint: Endpoint) -> Json:
        return endpoint_view(endpoint, self._store.config.organization_id)

    def _show(self, endpoint: Endpoint) -> Json:
        return {"webhook_endpoint": self._view(endpoint)}


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
