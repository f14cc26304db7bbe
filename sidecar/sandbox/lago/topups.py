"""``/wallet_transactions`` of the Lago stand-in: top-ups paid and granted, and voids.

Source: lago-api ``app/services/wallet_transactions/create_from_params_service.rb``, ``validate_service.rb``. There is
no protection against repetition: the same request twice is two top-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.invoicing import Invoicing
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, invalid, not_found, page
from sidecar.sandbox.lago.money import floor_places
from sidecar.sandbox.lago.prepaid import CREDIT_PLACES, Prepaid, cents_of, credits_of
from sidecar.sandbox.lago.records import Label, Transaction, Wallet
from sidecar.sandbox.lago.usage import UsageApi
from sidecar.sandbox.lago.wallet_views import transaction_view

METADATA_MAX = 15
METADATA_KEY_CHARS_MAX = 20
METADATA_VALUE_CHARS_MAX = 100
NAME_CHARS_MAX = 255
PRIORITY_DEFAULT = 50
_FILTERS: Mapping[str, tuple[tuple[str, ...], Callable[[Transaction], str]]] = {
    "status": (("pending", "settled", "failed"), lambda item: item.status),
    "transaction_status": (("purchased", "granted", "voided", "invoiced"), lambda item: item.kind),
    "transaction_type": (("inbound", "outbound"), lambda item: item.type),
}


class TopUps:
    """Moves credits as requests ask."""

    def __init__(self, store: Store, prepaid: Prepaid, invoicing: Invoicing, usage: UsageApi) -> None:
        self._store = store
        self._prepaid = prepaid
        self._invoicing = invoicing
        self._usage = usage

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("wallet_transaction"))
        wallet = self._store.wallets.get(fields.text("wallet_id") or "")
        if wallet is None:
            raise invalid({"wallet_id": ["wallet_not_found"]})
        if not wallet.is_active:
            raise invalid({"wallet_id": ["wallet_is_terminated"]})
        made = self.apply(wallet, fields)
        return {"wallet_transactions": [transaction_view(item) for item in made]}

    def apply(self, wallet: Wallet, fields: Fields) -> Sequence[Transaction]:
        """Paid, granted and voided credits of one request, in this order. Raises :class:`Refusal` 422."""
        check_amounts(wallet, fields)
        voided, source = fields.amount("voided_credits"), self._voided_source(wallet, fields)
        if voided is not None and voided > wallet.credits:
            fields.error("voided_credits", "insufficient_credits")
        metadata = _metadata(fields)
        name = fields.text("name", chars_max=NAME_CHARS_MAX) or None
        priority = fields.integer("priority") or PRIORITY_DEFAULT
        fields.check()
        label = Label(name, metadata, priority)
        made: list[Transaction] = []
        paid, granted = _credits(fields, "paid_credits"), _credits(fields, "granted_credits")
        if paid:
            made.append(self._buy(wallet, cents_of(wallet, paid), label))
        if granted:
            cents = cents_of(wallet, granted)
            made.append(self._prepaid.inbound(wallet, "granted", cents, credits_of(wallet, cents), label=label))
            self._prepaid.settle(made[-1])
        if voided or source is not None:
            made += self._void(wallet, voided, source, label)
        for transaction in made:
            self._prepaid.created(transaction)
        if any(transaction.status == "settled" for transaction in made):
            self._store.later(lambda: self._usage.refresh(wallet.customer))
        return made

    def _buy(self, wallet: Wallet, cents: int, label: Label) -> Transaction:
        """Pending until the invoice that a job makes of it is paid."""
        transaction = self._prepaid.inbound(wallet, "purchased", cents, credits_of(wallet, cents), label=label)
        self._store.later(lambda: self._bill(transaction))
        return transaction

    def _bill(self, transaction: Transaction) -> None:
        self._invoicing.bill_top_up(transaction)

    def _void(
        self, wallet: Wallet, credits: Decimal | None, source: Transaction | None, label: Label
    ) -> Sequence[Transaction]:
        """Takes credits off, or all that is left of one inbound transaction."""
        if credits is None and source is not None:
            cents = source.remaining_cents or 0
            credits = credits_of(wallet, cents)
        else:
            credits = floor_places(credits or Decimal(0), CREDIT_PLACES)
            cents = min(cents_of(wallet, credits), wallet.balance_cents)
        if not credits:
            return []
        transaction, _ = self._prepaid.outbound(wallet, "voided", cents, credits, label=label, source=source)
        return [transaction]

    def _voided_source(self, wallet: Wallet, fields: Fields) -> Transaction | None:
        wanted = fields.text("voided_transaction_id")
        if not wanted:
            return None
        found = next((item for item in wallet.transactions if item.id == wanted and item.type == "inbound"), None)
        if found is None:
            fields.error("voided_transaction_id", "wallet_transaction_not_found")
        elif not found.remaining_cents:
            fields.error("voided_transaction_id", "no_remaining_amount")
        else:
            asked = fields.amount("voided_credits")
            if asked is not None and cents_of(wallet, asked) > found.remaining_cents:
                fields.error("amount_cents", "exceeds_remaining_transaction_amount")
        return found

    def get(self, call: Call) -> Json:
        found = self._store.transactions.get(call.path["lago_id"])
        if found is None:
            raise not_found("wallet_transaction")
        return {"wallet_transaction": transaction_view(found)}

    def list(self, call: Call) -> Json:
        """Filters with values that there are not are ignored."""
        wallet = self._store.wallets.get(call.path["lago_id"])
        if wallet is None:
            raise not_found("wallet")
        found: Sequence[Transaction] = wallet.transactions
        for name, (allowed, value) in _FILTERS.items():
            asked = call.one(name)
            if asked in allowed:
                found = [item for item in found if value(item) == asked]
        for name, text in call.query:
            if name.startswith("metadata[") and name.endswith("]") and text:
                pair = {"key": name[9:-1], "value": text}
                found = [item for item in found if pair in item.label.metadata]
        return page(call, "wallet_transactions", newest_first(found), transaction_view)


def check_amounts(wallet: Wallet, fields: Fields) -> None:
    """Notes what is wrong with credits to be added: amounts must be text, worth a coin, within the wallet's limits."""
    for name in ("paid_credits", "granted_credits", "voided_credits"):
        credits = fields.amount(name)
        if name in fields.errors:
            fields.errors[name] = [f"invalid_{name}", "invalid_amount"]
        elif credits and name != "voided_credits" and not cents_of(wallet, floor_places(credits, CREDIT_PLACES)):
            fields.error(name, "amount_rounds_to_zero")
    paid = _credits(fields, "paid_credits") if "paid_credits" not in fields.errors else None
    if not paid or fields.boolean("ignore_paid_top_up_limits"):
        return
    cents = cents_of(wallet, paid)
    if wallet.min_top_up_cents is not None and cents < wallet.min_top_up_cents:
        fields.error("paid_credits", "amount_below_minimum")
    elif wallet.max_top_up_cents is not None and cents > wallet.max_top_up_cents:
        fields.error("paid_credits", "amount_above_maximum")


def _credits(fields: Fields, name: str) -> Decimal | None:
    credits = fields.amount(name)
    return None if credits is None else floor_places(credits, CREDIT_PLACES)


def _metadata(fields: Fields) -> tuple[Json, ...]:
    """Key and value pairs (lago-api ``metadata_validator.rb``)."""
    given = fields.given.get("metadata")
    if given is None or given == {}:
        return ()
    if not isinstance(given, list):
        fields.errors["metadata"] = ["invalid_type"]
        return ()
    if len(given) > METADATA_MAX:
        fields.errors["metadata"] = ["too_many_keys"]
    for item in given:
        if not isinstance(item, dict) or item.keys() != {"key", "value"} or not item["key"] or not item["value"]:
            fields.errors["metadata"] = ["invalid_key_value_pair"]
        elif isinstance(item["value"], dict | list):
            fields.errors["metadata"] = ["nested_structure_not_allowed"]
        elif len(str(item["key"])) > METADATA_KEY_CHARS_MAX:
            fields.errors["metadata"] = ["key_too_long"]
        elif len(str(item["value"])) > METADATA_VALUE_CHARS_MAX:
            fields.errors["metadata"] = ["value_too_long"]
    return tuple(given)
