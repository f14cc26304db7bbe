"""``/wallets`` of the Lago stand-in. Source: lago-api ``app/services/wallets/``, ``app/models/wallet.rb``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, invalid, not_found, page
from sidecar.sandbox.lago.records import Customer, Metric, Wallet
from sidecar.sandbox.lago.topups import TopUps, check_amounts
from sidecar.sandbox.lago.usage import UsageApi
from sidecar.sandbox.lago.wallet_views import wallet_view

ACTIVE_MAX = 6
PRIORITY_LOWEST = 50
FEE_TYPES = ("charge", "subscription", "commitment", "fixed_charge")


class WalletsApi:
    """Recurring top-up rules are not kept."""

    def __init__(self, store: Store, top_ups: TopUps, usage: UsageApi) -> None:
        self._store = store
        self._top_ups = top_ups
        self._usage = usage

    def create(self, call: Call) -> Json:
        return self._create(call.root("wallet"))

    def create_of_customer(self, call: Call) -> Json:
        customer = self._store.customer(call.path["external_id"])
        return self._create({**call.root("wallet"), "external_customer_id": customer.external_id})

    def _create(self, given: Json) -> Json:
        """Its first credits arrive in a job: the answer and ``wallet.created`` may show none."""
        fields = Fields(given)
        customer = self._store.customers.get(fields.text("external_customer_id") or "")
        if customer is None or customer.deleted:
            raise invalid({"customer": ["customer_not_found"]})
        if sum(1 for _ in self._store.wallets_of(customer)) >= ACTIVE_MAX:
            fields.error("customer", "wallet_limit_reached")
        currency = fields.currency("currency") or customer.currency
        rate = fields.number("rate_amount")
        if rate is None or rate <= 0:
            fields.errors["rate_amount"] = ["value_is_out_of_range"]
        if not currency:
            fields.error("currency", "value_is_invalid")
        fields.check()
        assert rate is not None, "a missing one was refused"
        assert currency, "a missing one was refused"
        customer.currency = customer.currency or currency
        wallet = Wallet(
            **self._store.new(), customer=customer, currency=currency, rate=rate,
            code=self._code(customer, fields), name=fields.text("name"), metadata=fields.object("metadata") or None,
        )  # fmt: skip
        self._assign(wallet, fields)
        check_amounts(wallet, fields)
        fields.check()
        self._store.wallets[wallet.id] = wallet
        self._store.emit("wallet.created", "wallet", lambda: wallet_view(wallet))
        first = {name: given[name] for name in ("paid_credits", "granted_credits") if given.get(name) is not None}
        if first:
            first |= {"name": given.get("transaction_name"), "metadata": given.get("transaction_metadata")}
            first |= {"priority": given.get("transaction_priority")}
            first["ignore_paid_top_up_limits"] = given.get("ignore_paid_top_up_limits_on_creation")
            self._store.later(lambda: self._top_up(wallet, first))
        customer.awaits_refresh = True
        return {"wallet": wallet_view(wallet, full=True)}

    def _top_up(self, wallet: Wallet, given: Json) -> None:
        if wallet.is_active:
            self._top_ups.apply(wallet, Fields(given))

    def update(self, call: Call) -> Json:
        wallet = self._find(call)
        if not wallet.is_active:
            raise invalid({"wallet_id": ["wallet_is_terminated"]})
        return self._update(wallet, Fields(call.root("wallet")))

    def _update(self, wallet: Wallet, fields: Fields) -> Json:
        if fields.text("code"):
            wallet.code = self._code(wallet.customer, fields, besides=wallet)
        self._assign(wallet, fields)
        if "name" in fields:
            wallet.name = fields.text("name")
        if "metadata" in fields:
            wallet.metadata = fields.object("metadata") or None
        self._store.later(lambda: self._usage.refresh(wallet.customer))
        self._store.emit("wallet.updated", "wallet", lambda: wallet_view(wallet))
        return {"wallet": wallet_view(wallet, full=True)}

    def _assign(self, wallet: Wallet, fields: Fields) -> None:
        """Sets what both creation and update take. Raises :class:`Refusal` and changes nothing for bad values."""
        expiration = self._expiration(fields) if "expiration_at" in fields else wallet.expiration_at
        priority = fields.integer("priority", wallet.priority) or wallet.priority
        if not 1 <= priority <= PRIORITY_LOWEST:
            fields.error("priority", "value_is_invalid")
        low = fields.integer("paid_top_up_min_amount_cents", wallet.min_top_up_cents, low=1)
        high = fields.integer("paid_top_up_max_amount_cents", wallet.max_top_up_cents, low=1)
        if low is not None and high is not None and high < low:
            fields.error("paid_top_up_max_amount_cents", "must_be_greater_than_or_equal_min")
        needs_payment = fields.boolean("invoice_requires_successful_payment", wallet.needs_payment)
        fee_types, metrics = wallet.fee_types, wallet.metrics
        if "applies_to" in fields:
            fee_types, metrics = self._scope(fields, wallet)
        fields.check()
        wallet.expiration_at, wallet.priority, wallet.needs_payment = expiration, priority, needs_payment
        wallet.min_top_up_cents, wallet.max_top_up_cents = low, high
        wallet.fee_types, wallet.metrics = fee_types, metrics

    def _scope(self, fields: Fields, wallet: Wallet) -> tuple[tuple[str, ...], tuple[Metric, ...]]:
        scope = Fields(fields.object("applies_to"))
        types = scope.texts("fee_types") if "fee_types" in scope else wallet.fee_types
        codes = scope.texts("billable_metric_codes")
        metrics = tuple(self._store.metrics[code] for code in codes if code in self._store.metrics)
        if scope.errors or not all(item in FEE_TYPES for item in types) or len(metrics) != len(codes):
            fields.error("applies_to", "invalid_limitations")
        return types, metrics

    def _expiration(self, fields: Fields) -> datetime | None:
        expiration = fields.instant("expiration_at")
        if expiration is not None and expiration <= self._store.now():
            fields.error("expiration_at", "invalid_date")
        return expiration

    def _code(self, customer: Customer, fields: Fields, besides: Wallet | None = None) -> str:
        """Unique among the active wallets of a customer; made of the name if none is given."""
        taken = {item.code for item in self._store.wallets_of(customer) if item is not besides}
        given = fields.text("code")
        if given:
            if given in taken:
                raise invalid({"code": ["value_already_exist"]})
            return given
        code = re.sub(r"[^a-z0-9]+", "_", (fields.text("name") or "").lower()).strip("_") or "default"
        return code if code not in taken else f"{code}_{int(self._store.clock.unix_s())}_{len(self._store.wallets)}"

    def get(self, call: Call) -> Json:
        return {"wallet": wallet_view(self._find(call), full=True)}

    def list(self, call: Call) -> Json:
        """Terminated ones included."""
        wanted, currency = call.one("external_customer_id"), call.one("currency")
        found = list(self._store.wallets.values())
        if wanted is not None:
            customer = self._store.customer(wanted)
            found = [item for item in found if item.customer is customer]
        if currency is not None:
            found = [item for item in found if item.currency == currency]
        return page(call, "wallets", newest_first(found), lambda item: wallet_view(item, full=True))

    def list_of_customer(self, call: Call) -> Json:
        customer = self._store.customer(call.path["external_id"])
        found = newest_first(self._store.wallets_of(customer, active=False))
        return page(call, "wallets", found, lambda item: wallet_view(item, full=True))

    def get_of_customer(self, call: Call) -> Json:
        """By code, which only active wallets have to themselves: prefer the id."""
        return {"wallet": wallet_view(self._find_of_customer(call.path), full=True)}

    def terminate(self, call: Call) -> Json:
        wallet = self._find(call)
        self.end(wallet)
        return {"wallet": wallet_view(wallet, full=True)}

    def end(self, wallet: Wallet) -> None:
        """Its balance stays on it, and pays no more."""
        if wallet.is_active:
            wallet.status, wallet.terminated_at = "terminated", self._store.now()
            wallet.customer.awaits_refresh = True
            self._store.emit("wallet.terminated", "wallet", lambda: wallet_view(wallet))

    def _find(self, call: Call) -> Wallet:
        found = self._store.wallets.get(call.path["lago_id"])
        if found is None:
            raise not_found("wallet")
        return found

    def _find_of_customer(self, path: Mapping[str, str]) -> Wallet:
        customer = self._store.customer(path["external_id"])
        found = next(
            (item for item in self._store.wallets_of(customer, active=False) if item.code == path["code"]), None
        )
        if found is None:
            raise not_found("wallet")
        return found
