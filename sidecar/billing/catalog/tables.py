"""Price tables as Lago's charges have them, and for people to read.

All ranges of a table are written in one style: each begins one after the last one's end, which every version of Lago
takes, or, where a tier is for a single unit, at the last one's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Tier, Volume

_RANGES: Final[Mapping[str, str]] = {"graduated": "graduated_ranges", "volume": "volume_ranges"}


def model_of(table: PriceTable) -> str:
    """Lago's ``charge_model``."""
    return type(table).__name__.lower()


def properties_of(table: PriceTable) -> dict[str, Any]:
    """Lago's ``properties``; amounts are texts."""
    match table:
        case Standard(amount):
            return {"amount": text_of(amount)}
        case Package(amount, size, free):
            return {"amount": text_of(amount), "package_size": size, "free_units": free}
        case Graduated(tiers) | Volume(tiers):
            return {_RANGES[model_of(table)]: _ranges(tiers)}


def _ranges(tiers: tuple[Tier, ...]) -> list[dict[str, Any]]:
    """Lago refuses a range that ends where it begins (``app/services/validators/range_bounds_validator.rb``)."""
    ends = [0, *(tier.up_to for tier in tiers if tier.up_to is not None)]
    has_single = any(end == before + 1 for before, end in pairwise(ends[1:]))
    starts = [0, *(end if has_single else end + 1 for end in ends[1:])]
    return [
        {
            "from_value": start,
            "to_value": tier.up_to,
            "per_unit_amount": text_of(tier.unit),
            "flat_amount": text_of(tier.flat),
        }
        for start, tier in zip(starts, tiers, strict=True)
    ]


def describe(table: PriceTable) -> str:
    """One line, such as ``graduated: to 10000 0, then 0.001``."""
    match table:
        case Standard(amount):
            return f"standard: {text_of(amount)}"
        case Package(amount, size, free):
            return f"package: {text_of(amount)} for {size}" + (f" after {free} free" if free else "")
        case Graduated(tiers) | Volume(tiers):
            return f"{model_of(table)}: " + ", ".join(map(_tier_text, tiers))


def _tier_text(tier: Tier) -> str:
    reach = "then" if tier.up_to is None else f"to {tier.up_to}"
    return f"{reach} {text_of(tier.unit)}" + (f" + {text_of(tier.flat)} flat" if tier.flat else "")


def snippet(table: PriceTable, metric: str) -> str:
    """The charge as a catalog file has it, in one line of YAML."""
    match table:
        case Standard(amount):
            rest = f'amount: "{text_of(amount)}"'
        case Package(amount, size, free):
            rest = f'amount: "{text_of(amount)}", size: {size}, free: {free}'
        case Graduated(tiers) | Volume(tiers):
            rest = f"tiers: [{', '.join(map(_tier_yaml, tiers))}]"
    return f"{{metric: {metric}, model: {model_of(table)}, {rest}}}"


def _tier_yaml(tier: Tier) -> str:
    parts = [] if tier.up_to is None else [f"up_to: {tier.up_to}"]
    parts.append(f'unit: "{text_of(tier.unit)}"')
    if tier.flat:
        parts.append(f'flat: "{text_of(tier.flat)}"')
    return f"{{{', '.join(parts)}}}"


def text_of(amount: Decimal) -> str:
    """Without an exponent, and without zeros that say nothing: 0.001, 5, 0."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
