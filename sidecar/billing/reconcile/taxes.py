"""The taxes of a fee, and amounts with them (lago-api ``app/services/fees/apply_taxes_service.rb``).

The first that has any: the charge, the plan, the customer, the customer's billing entity (by default the
organisation's). A rate of 0 is one too: it exempts. Lago adds all rates up and rounds once per fee, so what it bills is
at most half a cent away from this.
Taxes from a provider outside (Anrok, Avalara) are not known to Lago before it makes the invoice, nor here.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, localcontext
from typing import Final

from sidecar.billing.lago.models import Charge, Customer, Plan, Tax

_EXACT: Final = Context(prec=400, traps=[Inexact])
"""More digits than a price times a few rates can have: nothing is ever rounded."""


def charge_taxes(charge: Charge, plan: Plan, customer: Customer, default_taxes: Sequence[Tax]) -> tuple[Tax, ...]:
    """The taxes on usage. ``default_taxes`` may hold all of the organisation's: those that are none are left out.

    Raises:
        ValueError: the customer is from an answer that does not tell its taxes.
    """
    return charge.taxes or subscription_taxes(plan, customer, default_taxes)


def subscription_taxes(plan: Plan, customer: Customer, default_taxes: Sequence[Tax]) -> tuple[Tax, ...]:
    """The taxes on the plan's fee. Raises as ``charge_taxes``."""
    if plan.taxes:
        return plan.taxes
    if customer.taxes is None:
        raise ValueError(f"customer {customer.external_id}: its taxes have not been read")
    return customer_taxes(customer, default_taxes)


def customer_taxes(customer: Customer, default_taxes: Sequence[Tax]) -> tuple[Tax, ...]:
    """The taxes of who buys a plan that has none of its own."""
    return customer.taxes or tuple(tax for tax in default_taxes if _is_default(tax, customer))


def _is_default(tax: Tax, customer: Customer) -> bool:
    if tax.billing_entities and customer.billing_entity is not None:
        return customer.billing_entity in tax.billing_entities
    return tax.is_default


def gross(net: Decimal, taxes: Sequence[Tax]) -> Decimal:
    """``net`` and its taxes, exactly: net × (1 + Σ rates ÷ 100). Each rate is of the net amount, not of another tax."""
    with localcontext(_EXACT):
        return net * (1 + sum((tax.rate for tax in taxes), Decimal(0)).scaleb(-2))
