"""Makes the price table of the ledger from a charge in Lago, taxes included. Without I/O.

The models are Lago's (lago-api ``app/services/charge_models/``). What cannot be enforced call by call, or would cost
something else in Lago than here, is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sidecar.billing.lago.json_fields import number_of, whole_number_of
from sidecar.billing.lago.models import Charge, Plan, Tax
from sidecar.billing.reconcile.taxes import gross
from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
    Graduated,
    Package,
    PriceError,
    PriceTable,
    Standard,
    Tier,
    Volume,
    amounts,
    decimals,
    pack,
)

_MODELS_REFUSED: Final[Mapping[str, str]] = {
    "percentage": "a percentage is of the amount of each event, which a gateway does not know",
    "graduated_percentage": "a percentage is of the amount of each event, which a gateway does not know",
    "dynamic": "dynamic prices come with each event",
    "custom": "custom prices are computed by code in Lago",
}


class Unenforceable(Exception):
    """A charge that cannot be enforced in real time. The message names plan, charge and reason."""

    def __init__(self, plan_code: str, metric_code: str, charge: str, reason: str) -> None:
        super().__init__(f"plan {plan_code}: charge {charge} of {metric_code}: {reason}")
        self.plan_code = plan_code
        self.metric_code = metric_code
        self.charge = charge
        self.reason = reason


def price_table(charge: Charge, plan: Plan, taxes: Sequence[Tax]) -> PriceTable:
    """The price of a charge without filters and groups, with ``taxes`` on it.

    Raises:
        Unenforceable: it cannot be enforced in real time.
    """
    check_terms(charge, plan)
    if charge.has_filters:
        raise refusal(charge, plan, "it has filters: the price depends on properties of events")
    if group_keys(charge.properties):
        raise refusal(charge, plan, "it is grouped by properties of events, and each group starts at the first price")
    try:
        net = net_price(charge.model, charge.properties)
        table = _with_taxes(net, taxes)
        _check_packable(table)
    except PriceError as error:
        raise refusal(charge, plan, str(error)) from None
    return table


def net_price(model: str, properties: Mapping[str, Any]) -> PriceTable:
    """The price of a model with these properties, before taxes.

    Raises:
        PriceError: the model is not one of those that can be computed here, or its properties cannot be read.
    """
    if model not in _MODELS:
        raise PriceError(f"the model {model} is not known")
    return _MODELS[model](properties)


def _check_packable(table: PriceTable) -> None:
    """Raises ``PriceError`` for what no account can hold, however few digits its other amounts need."""
    try:
        digits = max(map(decimals, amounts(table)))
    except PriceError as error:
        raise PriceError(f"with taxes: {error}") from None
    pack(table, digits, "with taxes")


def refusal(charge: Charge, plan: Plan, reason: str) -> Unenforceable:
    """The error to raise."""
    return Unenforceable(plan.code, charge.metric_code, charge.code or charge.lago_id, reason)


def group_keys(properties: Mapping[str, Any]) -> Sequence[object]:
    """What Lago groups a price by: each combination of the values of these properties of events starts at the first
    price."""
    keys = properties.get("pricing_group_keys") or properties.get("grouped_by") or ()
    return keys if isinstance(keys, list | tuple) else (keys,)


def check_terms(charge: Charge, plan: Plan) -> None:
    """Raises ``Unenforceable`` for a charge that cannot be enforced whatever its prices are."""
    if reason := _unenforceable(charge, plan):
        raise refusal(charge, plan, reason)


def _unenforceable(charge: Charge, plan: Plan) -> str | None:
    if reason := _MODELS_REFUSED.get(charge.model):
        return f"the model {charge.model} cannot be enforced: {reason}"
    if charge.model not in _MODELS:
        return f"the model {charge.model} is not known"
    if plan.has_usage_thresholds:
        return "usage thresholds are set: progressive billing debits wallets in the middle of a period"
    if charge.pay_in_advance:
        return "it is paid in advance, by an invoice for each event"
    if charge.prorated:
        return "it is prorated: what a unit costs depends on the day"
    if charge.has_pricing_unit:
        return "it is priced in a pricing unit, not in the plan's currency"
    if charge.min_amount_cents:
        return "it has a minimum amount, which is only known when the period has ended"
    return None


def _with_taxes(table: PriceTable, taxes: Sequence[Tax]) -> PriceTable:
    match table:
        case Standard(amount):
            return Standard(gross(amount, taxes))
        case Package(amount, size, free):
            return Package(gross(amount, taxes), size, free)
        case Graduated(tiers):
            return Graduated(_taxed(tiers, taxes))
        case Volume(tiers):
            return Volume(_taxed(tiers, taxes))


def _taxed(tiers: tuple[Tier, ...], taxes: Sequence[Tax]) -> tuple[Tier, ...]:
    return tuple(Tier(tier.up_to, gross(tier.unit, taxes), gross(tier.flat, taxes)) for tier in tiers)


# Tables before taxes. These raise ``PriceError`` with messages about the properties alone.


def _standard(properties: Mapping[str, Any]) -> Standard:
    return Standard(_amount(properties, "amount"))


def _package(properties: Mapping[str, Any]) -> Package:
    free = properties.get("free_units")
    return Package(
        _amount(properties, "amount"),
        _whole(properties.get("package_size"), "package_size", least=1),
        0 if free is None else _whole(free, "free_units"),
    )


def _graduated(properties: Mapping[str, Any]) -> Graduated:
    return Graduated(_tiers(properties, "graduated_ranges"))


def _volume(properties: Mapping[str, Any]) -> Volume:
    return Volume(_tiers(properties, "volume_ranges"))


_MODELS: Final[Mapping[str, Callable[[Mapping[str, Any]], PriceTable]]] = {
    "standard": _standard,
    "package": _package,
    "graduated": _graduated,
    "volume": _volume,
}


def _tiers(properties: Mapping[str, Any], name: str) -> tuple[Tier, ...]:
    """Ranges as tiers. Lago knows two styles: each range begins where the last one ended, or one later.

    For whole units they are the same as long as all ranges are of one style, and those of the first begin at 0. Lago
    bills a mixed table one unit too many, and one of the first style from 1 on one too few (``adjacent_ranges?`` in
    ``graduated_service.rb``, ``units`` in ``amount_details/range_graduated_service.rb``).
    """
    rows = properties.get(name)
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise PriceError(f"{name} is not a list of ranges")
    tiers: list[Tier] = []
    steps: set[int] = set()
    ended: int | None = None
    for number, row in enumerate(rows, start=1):
        where = f"{name}, range {number}"
        start, end = _whole(row.get("from_value"), f"{where}: from_value"), row.get("to_value")
        if number == 1:
            if start not in (0, 1):
                raise PriceError(f"{where}: it starts at {start} instead of 0 or 1")
        elif ended is None:
            raise PriceError(f"{where}: it follows one without an end")
        else:
            if start - ended not in (0, 1):
                raise PriceError(f"{where}: it starts at {start}, though the last one ends at {ended}")
            steps.add(start - ended)
        ended = None if end is None else _whole(end, f"{where}: to_value")
        if ended is not None and ended < max(start, 1):
            raise PriceError(f"{where}: it ends at {ended}, before it has begun")
        tiers.append(Tier(ended, _amount(row, "per_unit_amount", where), _amount(row, "flat_amount", where)))
    if ended is not None:
        raise PriceError(f"{name}: the last range ends at {ended}; units beyond it have no price")
    if len(steps) > 1:
        raise PriceError(f"{name}: some ranges begin where the last one ended, some one later; Lago bills that wrong")
    if steps == {0} and whole_number_of(rows[0]["from_value"]) == 1:
        raise PriceError(f"{name}: ranges that begin where the last one ended must begin at 0; Lago bills that wrong")
    return tuple(tiers)


def _amount(properties: Mapping[str, Any], name: str, where: str = "") -> Decimal:
    what = f"{where}: {name}" if where else name
    value = properties.get(name)
    if value is None:
        raise PriceError(f"{what} is missing")
    number = number_of(value)
    if number is None:
        raise PriceError(f"{what} is not an amount of money")
    if number < 0:
        raise PriceError(f"{what} is negative")
    return number


def _whole(value: object, what: str, least: int = 0) -> int:
    if value is None:
        raise PriceError(f"{what} is missing")
    number = whole_number_of(value)
    if number is None or not least <= number <= MAX_INT:
        raise PriceError(f"{what} is not a whole number between {least} and 2^53-1")
    return number
