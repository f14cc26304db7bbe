"""What usage costs: the charge models of Lago, with arithmetic of the stand-in's own.

Independent of the gateway's prices on purpose: where both agree, neither copied the other's mistake. Source: lago-api
``app/services/charge_models/`` and ``app/services/validators/range_bounds_validator.rb``. Amounts are ``Decimal`` in
units of the currency, not rounded; the fee rounds once.

A graduated table's ranges may follow each other as 0-10, 11-20 or as 0-10, 10-20. Lago takes a table for the second
kind only if all of its ranges follow so; in one that mixes both, a range of the second kind bills one unit too many.
That is reproduced here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from itertools import pairwise
from typing import Any

from sidecar.sandbox.lago.fields import DECIMAL_MAX, decimal_of
from sidecar.sandbox.lago.money import WIDE, decimal_text

MODELS = ("standard", "graduated", "package", "volume", "percentage")
RANGES_MAX = 100
Properties = Mapping[str, Any]
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a charge is applied to. ``events`` are the values of the events in order: percentage looks at each."""

    units: Decimal
    events: Sequence[Decimal] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """``amount`` is not rounded; ``details`` are a fee's ``amount_details``."""

    amount: Decimal
    details: Mapping[str, object]


def cost(model: str, properties: Properties, usage: Usage) -> Cost:
    """The cost of a period's usage. Usage below zero costs nothing, as usage of none does not."""
    if usage.units < 0:
        return Cost(_ZERO, {})
    with localcontext(WIDE):
        return _COSTS[model](properties, usage)


def _standard(properties: Properties, usage: Usage) -> Cost:
    return Cost(usage.units * Decimal(properties["amount"]), {})


def _graduated(properties: Properties, usage: Usage) -> Cost:
    """Each range entered costs its flat amount and its units; with no usage at all that is the first one's flat."""
    ranges = properties["graduated_ranges"]
    overlaps = len(ranges) > 1 and all(
        Decimal(after["from_value"]) == Decimal(range_["to_value"] or 0) for range_, after in pairwise(ranges)
    )
    total, details = _ZERO, []
    for range_ in ranges:
        last = range_["to_value"]
        units = _units_within(range_, usage.units, counts_from=not overlaps)
        price = Decimal(range_["per_unit_amount"]) if units else _ZERO
        flat = Decimal(range_["flat_amount"])
        total += units * price + flat
        details.append(_range_details(range_, units, price, flat))
        if last is None or Decimal(last) >= usage.units:
            break
    return Cost(total, {"graduated_ranges": details})


def _units_within(range_: Properties, units: Decimal, *, counts_from: bool) -> Decimal:
    """How many of the units lie in the range; ``counts_from``: the one numbered ``from_value`` does."""
    first, last = Decimal(range_["from_value"]), range_["to_value"]
    reached = units if last is None else min(units, Decimal(last))
    if first == 0:
        return reached
    return reached - first + 1 if counts_from else reached - first


def _range_details(range_: Properties, units: Decimal, price: Decimal, flat: Decimal) -> dict[str, object]:
    return {
        "from_value": range_["from_value"],
        "to_value": range_["to_value"],
        "flat_unit_amount": decimal_text(flat),
        "per_unit_amount": decimal_text(price),
        "units": decimal_text(units),
        "per_unit_total_amount": decimal_text(units * price),
        "total_with_flat_amount": decimal_text(units * price + flat),
    }


def _package(properties: Properties, usage: Usage) -> Cost:
    """A package counts from its first unit."""
    free, size = Decimal(properties.get("free_units") or 0), int(properties["package_size"])
    price = Decimal(properties["amount"])
    paid = max(_ZERO, usage.units - free)
    packages = (paid / size).to_integral_value(ROUND_CEILING)
    details = {
        "free_units": decimal_text(free),
        "paid_units": decimal_text(paid),
        "per_package_size": size,
        "per_package_unit_amount": decimal_text(price),
    }
    return Cost(packages * price, details)


def _volume(properties: Properties, usage: Usage) -> Cost:
    """All units at the price of the range that they reach."""
    reached = usage.units.to_integral_value(ROUND_CEILING)
    for range_ in sorted(properties["volume_ranges"], key=lambda item: Decimal(item["from_value"])):
        last = range_["to_value"]
        if Decimal(range_["from_value"]) <= reached and (last is None or usage.units <= Decimal(last)):
            break
    else:
        # A first range from 1 has no place for a usage of none.
        return Cost(_ZERO, {})
    price, flat = Decimal(range_["per_unit_amount"]), Decimal(range_["flat_amount"])
    details = {
        "flat_unit_amount": decimal_text(flat),
        "per_unit_amount": decimal_text(price if usage.units else _ZERO),
        "per_unit_total_amount": decimal_text(usage.units * price),
    }
    return Cost(usage.units * price + flat, details)


def _percentage(properties: Properties, usage: Usage) -> Cost:
    """A rate on the units and a fixed amount for each event, beyond the first events or units, which are free."""
    rate = Decimal(str(properties["rate"]))
    fixed = Decimal(str(properties.get("fixed_amount") or 0))
    free_events = int(properties.get("free_units_per_events") or 0)
    free_total = Decimal(properties.get("free_units_per_total_aggregation") or 0)
    totals: list[Decimal] = []
    for value in usage.events:
        totals.append(value + (totals[-1] if totals else _ZERO))
    free_units = _free_units(totals, free_events, free_total)
    counts = [count for count in (free_events, sum(total < free_total for total in totals)) if count]
    paid_events = max(0, len(totals) - (min(counts) if counts else 0))
    share = max(_ZERO, usage.units - free_units) * rate / 100
    return Cost(share + (paid_events * fixed if usage.units else _ZERO), {})


def _free_units(totals: Sequence[Decimal], free_events: int, free_total: Decimal) -> Decimal:
    if not totals or (not free_events and not free_total):
        return _ZERO
    if 0 < free_events < len(totals):
        return totals[free_events - 1]
    return totals[-1] if not free_total else min(totals[-1], free_total)


_COSTS: Mapping[str, Callable[[Properties, Usage], Cost]] = {
    "standard": _standard,
    "graduated": _graduated,
    "package": _package,
    "volume": _volume,
    "percentage": _percentage,
}


def property_errors(model: str, properties: Properties) -> dict[str, list[str]]:
    """What Lago finds wrong with a charge's properties, codes by field; nothing if they can be billed."""
    errors: dict[str, list[str]] = {}
    if model in ("graduated", "volume"):
        _check_ranges(f"{model}_ranges", properties.get(f"{model}_ranges"), errors)
    elif model == "percentage":
        if not is_amount(str(properties.get("rate"))):
            errors["rate"] = ["invalid_rate"]
        for name in ("fixed_amount", "free_units_per_total_aggregation"):
            if properties.get(name) is not None and not is_amount(properties[name]):
                errors[name] = [f"invalid_{name}"]
        if not _whole(properties.get("free_units_per_events", 0) or 0, 0):
            errors["free_units_per_events"] = ["invalid_free_units_per_events"]
    else:
        if not is_amount(properties.get("amount")):
            errors["amount"] = ["invalid_amount"]
        if model == "package" and not _whole(properties.get("free_units"), 0):
            errors["free_units"] = ["invalid_free_units"]
        if model == "package" and not _whole(properties.get("package_size"), 1):
            errors["package_size"] = ["invalid_package_size"]
    return errors


def _check_ranges(name: str, ranges: object, errors: dict[str, list[str]]) -> None:
    if not isinstance(ranges, list) or not ranges or len(ranges) > RANGES_MAX:
        errors[name] = [f"missing_{name}"]
        return
    expected = _ZERO
    for index, range_ in enumerate(ranges):
        if not isinstance(range_, dict) or not _bounds_follow(range_, expected, is_last=index == len(ranges) - 1):
            errors[name] = [f"invalid_{name}"]
            return
        for amount in ("per_unit_amount", "flat_amount"):
            if not is_amount(range_.get(amount)):
                errors[amount] = ["invalid_amount"]
        expected = decimal_of(range_.get("to_value")) or _ZERO


def _bounds_follow(range_: Properties, expected: Decimal, *, is_last: bool) -> bool:
    """A range starts where the one before it ended, or one later; only the last has no end."""
    first, last = decimal_of(range_.get("from_value")), decimal_of(range_.get("to_value"))
    if first is None or first not in (expected, expected + 1):
        return False
    if is_last:
        return range_.get("to_value", 0) is None
    return last is not None and last > first


def is_amount(value: object) -> bool:
    """Whether Lago takes it for an amount of money: text, not a JSON number."""
    number = decimal_of(value) if isinstance(value, str) else None
    return number is not None and 0 <= number <= DECIMAL_MAX


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= DECIMAL_MAX
