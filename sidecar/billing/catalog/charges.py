"""Reads the charges of a catalog file, in its own form or in Lago's, and says which cannot be enforced and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, Tag, model_validator

from sidecar.billing.catalog.charge_tables import charge_tables
from sidecar.billing.catalog.section_fields import Codes, MetricCode, Text
from sidecar.billing.catalog.tables import model_of, properties_of, snippet
from sidecar.billing.lago.json_fields import number_of, whole_number_of
from sidecar.billing.lago.models import Charge, ChargeFilter, Plan
from sidecar.billing.reconcile.charge_prices import Unenforceable, price_table
from sidecar.config.fields import Model, Whole
from sidecar.ledger.accounts.account_fields import PackagePrice, StandardPrice, TieredPrice
from sidecar.ledger.pricing.price_tables import Graduated, PriceError, PriceTable, Tier, Volume, pack

_PLACEHOLDER: Final = '{{metric: {metric}, model: standard, amount: "<price of a call>"}}'
_NO_PLAN: Final = Plan("", "", "", "monthly", 0, "USD", False, ())


FilterAllowed = Annotated[tuple[Text, ...], Field(min_length=1, max_length=1_000)]


class ChargeFilterSection(Model):
    """The price of usage events with these values, as Lago's ``properties`` of the charge's model."""

    values: Annotated[dict[Text, FilterAllowed], Field(min_length=1)]
    properties: dict[str, Any]


class _ChargeOptions(Model):
    """Options of any charge. All but taxes can only be said to be refused with a reason, as in Lago's own files."""

    taxes: Codes = Field(default=(), validation_alias=AliasChoices("taxes", "tax_codes"))
    pay_in_advance: bool = False
    prorated: bool = False
    invoiceable: bool = True
    min_amount_cents: Annotated[Whole, Field(ge=0)] = 0
    filters: Annotated[tuple[ChargeFilterSection, ...], Field(max_length=100)] = ()
    applied_pricing_unit: dict[str, Any] | None = None


class StandardCharge(_ChargeOptions, StandardPrice):
    """Every unit costs ``amount``."""

    metric: MetricCode


class TieredCharge(_ChargeOptions, TieredPrice):
    """Graduated or volume, by ``tiers``."""

    metric: MetricCode


class PackageCharge(_ChargeOptions, PackagePrice):
    """``size`` units for ``amount``, after ``free`` ones."""

    metric: MetricCode


class LagoCharge(_ChargeOptions):
    """A charge as Lago's API takes it: the keys of ``properties`` may be the charge's own, as on older pages."""

    billable_metric_code: MetricCode
    charge_model: str
    properties: dict[str, Any] = Field(default_factory=dict)
    amount: Any = None
    package_size: Any = None
    free_units: Any = None
    graduated_ranges: Any = None
    volume_ranges: Any = None

    @model_validator(mode="after")
    def _has_properties_once(self) -> LagoCharge:
        if self.properties and self._conflicting_keys():
            raise ValueError(f"has both properties and {', '.join(self._conflicting_keys())}")
        return self

    def _conflicting_keys(self) -> dict[str, Any]:
        names = ("amount", "package_size", "free_units", "graduated_ranges", "volume_ranges")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def given(self) -> dict[str, Any]:
        """The properties, with a flat amount of 0 in ranges that have none, as Lago's interface fills them in."""
        found = self.properties or self._conflicting_keys()
        return {name: _with_flats(value) if name.endswith("_ranges") else value for name, value in found.items()}


class RefusedCharge(Model):
    """A charge of a model whose prices a gateway cannot know; whatever else it has."""

    model_config = ConfigDict(extra="allow")

    metric: MetricCode = Field(validation_alias=AliasChoices("metric", "billable_metric_code"))
    model: str = Field(validation_alias=AliasChoices("model", "charge_model"))
    taxes: Codes = Field(default=(), validation_alias=AliasChoices("taxes", "tax_codes"))


_CatalogCharge = Annotated[StandardCharge | TieredCharge | PackageCharge, Field(discriminator="model")]


def _form(value: Any) -> str:
    given = value if isinstance(value, Mapping) else {}
    model = given.get("charge_model", given.get("model"))
    if model in ("percentage", "graduated_percentage", "dynamic", "custom"):
        return "refused"
    return "lago" if "charge_model" in given or "billable_metric_code" in given else "catalog"


ChargeSection = Annotated[
    Annotated[_CatalogCharge, Tag("catalog")]
    | Annotated[LagoCharge, Tag("lago")]
    | Annotated[RefusedCharge, Tag("refused")],
    Discriminator(_form),
]


def metric_of(section: ChargeSection) -> str:
    return section.billable_metric_code if isinstance(section, LagoCharge) else section.metric


@dataclass(frozen=True, slots=True)
class RefusedPrice:
    """Why a charge is refused, and a charge that would do."""

    reason: str
    instead: str


def charge_of(section: ChargeSection) -> Charge | RefusedPrice:
    """The charge with its ranges in one style, or why it cannot be enforced."""
    metric = metric_of(section)
    charge = _as_lago(section)
    try:
        tables = charge_tables(charge, _NO_PLAN, ())
    except Unenforceable as error:
        return RefusedPrice(error.reason, _suggestion(charge))
    if not charge.invoiceable:
        return RefusedPrice("it is not invoiceable: Lago would never bill the debits", _suggestion(charge))
    return Charge(
        "", metric, model_of(tables.own), properties_of(tables.own), has_filters=charge.has_filters,
        filters=tables.charge_filters(),
    )  # fmt: skip


def _as_lago(section: ChargeSection) -> Charge:
    metric = metric_of(section)
    if isinstance(section, RefusedCharge):
        return Charge("", metric, section.model, {})
    if isinstance(section, LagoCharge):
        model, properties = section.charge_model, section.given()
    else:
        table = section.table()
        model, properties = model_of(table), properties_of(table)
    return Charge(
        "",
        metric,
        model,
        properties,
        pay_in_advance=section.pay_in_advance,
        prorated=section.prorated,
        invoiceable=section.invoiceable,
        min_amount_cents=section.min_amount_cents,
        has_filters=bool(section.filters),
        filters=tuple(
            ChargeFilter(each.values, {name: _with_flats(value) for name, value in each.properties.items()})
            for each in section.filters
        ),
        has_pricing_unit=section.applied_pricing_unit is not None,
    )


def _suggestion(charge: Charge) -> str:
    """The same charge without what is refused, as the file has it."""
    bare = replace(
        charge,
        properties={name: each for name, each in charge.properties.items() if name not in _GROUPS},
        pay_in_advance=False, prorated=False, invoiceable=True, min_amount_cents=0, has_filters=False, filters=(),
        has_pricing_unit=False,
    )  # fmt: skip
    try:
        return snippet(price_table(bare, _NO_PLAN, ()), charge.metric_code)
    except Unenforceable:
        table = _by_ends(bare)
        return snippet(table, charge.metric_code) if table else _PLACEHOLDER.format(metric=charge.metric_code)


_GROUPS: Final = ("pricing_group_keys", "grouped_by")


def _by_ends(charge: Charge) -> PriceTable | None:
    """Ranges whose starts contradict each other, read by where they end; None if that is not a table either."""
    rows = charge.properties.get("graduated_ranges" if charge.model == "graduated" else "volume_ranges")
    if charge.model not in ("graduated", "volume") or not isinstance(rows, Sequence) or not rows:
        return None
    tiers = [_by_end(row) for row in rows]
    if any(tier is None for tier in tiers):
        return None
    found = tuple(tier for tier in tiers if tier is not None)
    table = Graduated(found) if charge.model == "graduated" else Volume(found)
    try:
        pack(table, 12, "")
    except PriceError:
        return None
    return table


def _by_end(row: object) -> Tier | None:
    if not isinstance(row, Mapping):
        return None
    end, unit, flat = row.get("to_value"), number_of(row.get("per_unit_amount")), number_of(row.get("flat_amount"))
    up_to = None if end is None else whole_number_of(end)
    if unit is None or (end is not None and up_to is None):
        return None
    return Tier(up_to, unit, flat if flat is not None else Decimal(0))


def _with_flats(rows: Any) -> Any:
    if not isinstance(rows, list):
        return rows
    return [{"flat_amount": "0", **row} if isinstance(row, Mapping) else row for row in rows]
