"""Customers, wallets and subscriptions for a run, made in a Lago through its API, as an operator would."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

from loadtests.scenarios.plan import Caller
from loadtests.scenarios.target import CannotRun, Secret
from loadtests.scenarios.web import NoAnswer, ask
from sidecar.sandbox.demo import CURRENCY, DemoAccount

LOADED_TIMEOUT_S: Final = 30.0
UNLIMITED: Final = (("quota_mode", "postpaid"), ("quota_credit_limit", "1000000"))


@dataclass(frozen=True, slots=True)
class Lago:
    """Where a Lago is."""

    url: str
    key: Secret

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return ask("Lago", "POST", f"{self.url}/api/v1/{path}", token=self.key, body=body)

    def wallet_of(self, account: str) -> dict[str, Any]:
        """An account's active wallet. Raises CannotRun: it has none."""
        url = f"{self.url}/api/v1/wallets?external_customer_id={quote(account, safe='')}"
        for wallet in ask("Lago", "GET", url, token=self.key)["wallets"]:
            if wallet["status"] == "active":
                return dict(wallet)
        raise CannotRun(f"Lago has no active wallet for {account}")

    def top_up(self, account: str, credits: str) -> Decimal:
        """Grants credits; what they are worth in money."""
        wallet = self.wallet_of(account)
        body = {"wallet_transaction": {"wallet_id": wallet["lago_id"], "granted_credits": credits}}
        self.post("wallet_transactions", body)
        return Decimal(credits) * Decimal(wallet["rate_amount"])


def customer(
    name: str, plan: str, *, wallet: str | None = None, metadata: Sequence[tuple[str, str]] = ()
) -> DemoAccount:
    """A customer to make, with a new API key, on one of the demo's plans."""
    key = f"load-{secrets.token_hex(12)}"
    return DemoAccount(name, "", plan, "", key, wallet=wallet, metadata=tuple(metadata))


def paying(name: str, funds: str = "100000.00") -> DemoAccount:
    """Prepaid, 0.10 a call of ``api_calls``."""
    return customer(name, "api_prepaid", wallet=funds)


def make(lago: Lago, admin: str, customers: Sequence[DemoAccount]) -> tuple[Caller, ...]:
    """Makes them and waits until the ledger has them.

    Raises:
        CannotRun: Lago refuses something, or the control plane does not bring it to the ledger.
    """
    for each in customers:
        lago.post("customers", {"customer": each.customer()})
        if each.wallet is not None:
            wallet = {
                "external_customer_id": each.id, "name": "credits", "currency": CURRENCY, "rate_amount": "1.0",
                "paid_credits": "0", "granted_credits": each.wallet,
            }  # fmt: skip
            lago.post("wallets", {"wallet": wallet})
        subscription = {"external_customer_id": each.id, "plan_code": each.plan, "external_id": f"{each.id}-sub"}
        lago.post("subscriptions", {"subscription": {**subscription, "billing_time": "calendar"}})
    until = time.monotonic() + LOADED_TIMEOUT_S
    for each in customers:
        while not _is_loaded(admin, each):
            if time.monotonic() > until:
                raise CannotRun(f"{each.id} was made in Lago and is not in the ledger after {LOADED_TIMEOUT_S:g} s")
            time.sleep(0.05)
    return tuple(Caller(each.id, each.api_key) for each in customers)


def _is_loaded(admin: str, made: DemoAccount) -> bool:
    try:
        found = ask("the admin side", "GET", f"{admin}/v1/accounts/{quote(made.id, safe='')}")
    except NoAnswer as error:
        if error.status == 404:
            return False
        raise
    funded = made.wallet is None or Decimal(found["amounts"].get("funds", "0")) == Decimal(made.wallet)
    return bool(funded and found["api_keys"] and any(metric["in_plan"] for metric in found["metrics"]))
