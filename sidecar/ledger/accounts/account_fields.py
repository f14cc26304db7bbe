"""Parts of an account in the accounts file: amounts, prices, periods, limits, keys.

Amounts are decimals, quoted or not, and never pass through a float: ``sidecar.config.scalars`` keeps their digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, SecretStr, Tag, model_validator

from sidecar.config.fields import Model, Whole, conflict
from sidecar.ledger.accounts.account_spec import BURST_MAX, DAY_LIMIT_MAX, RATE_MAX, RATE_MIN, RateLimits
from sidecar.ledger.accounts.api_keys import digest_of, is_sha256
from sidecar.ledger.accounts.periods import HOUR_MS, NOW_MS_MAX, CalendarPeriods, EqualPeriods, FixedPeriod, PeriodRule
from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
    TIERS_MAX,
    Graduated,
    Package,
    PriceTable,
    Standard,
    Tier,
    Volume,
    amounts,
    decimals,
    pack,
)

_MONTH_DAY: Final = re.compile(r"(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")
_DECIMAL: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_NUMBER_LENGTH_MAX: Final = 64


def _decimal(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError("should be a decimal number like 12.50")
    if isinstance(value, str) and (len(value) > _NUMBER_LENGTH_MAX or not _DECIMAL.fullmatch(value)):
        raise ValueError("should be a decimal number like 12.50")
    return value


def _representable(value: Decimal) -> Decimal:
    decimals(value)
    return value


Amount = Annotated[Decimal, BeforeValidator(_decimal), AfterValidator(_representable)]
AmountFromZero = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0), AfterValidator(_representable)]
Units = Annotated[Whole, Field(ge=0, le=MAX_INT)]


class StandardPrice(Model):
    """Every unit costs the same."""

    model: Literal["standard"]
    amount: AmountFromZero

    def table(self) -> PriceTable:
        return Standard(self.amount)


class TierPrice(Model):
    """``up_to`` is inclusive and missing in the last tier; ``flat`` is due once when the tier is entered."""

    up_to: Units | None = None
    unit: AmountFromZero = Decimal(0)
    flat: AmountFromZero = Decimal(0)


class TieredPrice(Model):
    """Graduated: each unit by its tier. Volume: all units by the tier of the last."""

    model: Literal["graduated", "volume"]
    tiers: Annotated[tuple[TierPrice, ...], Field(min_length=1, max_length=TIERS_MAX)]

    def table(self) -> PriceTable:
        tiers = tuple(Tier(tier.up_to, tier.unit, tier.flat) for tier in self.tiers)
        return Graduated(tiers) if self.model == "graduated" else Volume(tiers)


class PackagePrice(Model):
    """Units are sold by the ``size``, after ``free`` ones."""

    model: Literal["package"]
    amount: AmountFromZero
    size: Annotated[Whole, Field(ge=1, le=MAX_INT)]
    free: Units = 0

    def table(self) -> PriceTable:
        return Package(self.amount, self.size, self.free)


def _packable(price: StandardPrice | TieredPrice | PackagePrice) -> StandardPrice | TieredPrice | PackagePrice:
    table = price.table()
    pack(table, max(decimals(amount) for amount in amounts(table)), "the price")
    return price


Price = Annotated[StandardPrice | TieredPrice | PackagePrice, Field(discriminator="model"), AfterValidator(_packable)]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone like Europe/London") from None
    return name


class CalendarModel(Model):
    """Hours, days, weeks, months or years."""

    every: Literal["hour", "day", "week", "month", "year"]
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] = "UTC"
    anchor: Whole | str | None = None

    @model_validator(mode="after")
    def _anchor_fits(self) -> CalendarModel:
        if self.every == "hour" and "timezone" in self.model_fields_set:
            raise conflict([("timezone", "has no meaning for hours, which are those of UTC")])
        expected = {
            "hour": (None, "has no meaning for hours"),
            "day": (None, "has no meaning for days"),
            "week": (7, "should be the day of the week, 1 (Monday) to 7"),
            "month": (31, "should be the day of the month, 1 to 31"),
            "year": (None, "should be month and day like 04-06"),
        }
        highest, message = expected[self.every]
        if self.anchor is None:
            return self
        by_day = highest is not None and isinstance(self.anchor, int) and 1 <= self.anchor <= highest
        by_date = self.every == "year" and isinstance(self.anchor, str) and _MONTH_DAY.fullmatch(self.anchor)
        if not by_day and not by_date:
            raise conflict([("anchor", message)])
        return self

    def rule(self) -> PeriodRule:
        if self.every == "hour":
            return EqualPeriods(HOUR_MS)
        if self.every == "year":
            month, day = (str(self.anchor) if self.anchor else "01-01").split("-")
            return CalendarPeriods("year", self.timezone, (int(month), int(day)))
        return CalendarPeriods(self.every, self.timezone, int(self.anchor or 1))


class LengthModel(Model):
    """Periods of so many seconds, counted from the Unix epoch."""

    seconds: Annotated[Whole, Field(ge=1, le=1_000_000_000)]

    def rule(self) -> PeriodRule:
        return EqualPeriods(self.seconds * 1000)


def _instant(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("should be a time like 2026-01-31T00:00:00Z")
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("should be a time like 2026-01-31T00:00:00Z") from None
    if instant.tzinfo is None:
        raise ValueError("should say its offset from UTC: 2026-01-31T00:00:00Z or …+01:00")
    milliseconds = round((instant - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    if not 0 <= milliseconds <= NOW_MS_MAX:
        raise ValueError("should be between the years 1970 and 4000")
    return milliseconds


Instant = Annotated[int, BeforeValidator(_instant)]


class DatesModel(Model):
    """One period; after its end its length repeats."""

    start: Instant = Field(alias="from")
    end: Instant = Field(alias="to")

    @model_validator(mode="after")
    def _ends_after_start(self) -> DatesModel:
        if self.end <= self.start:
            raise conflict([("to", "should be later than from")])
        return self

    def rule(self) -> PeriodRule:
        return FixedPeriod(self.start, self.end)


def _kind_of_period(value: Any) -> str:
    keys = value if isinstance(value, Mapping) else ()
    return "length" if "seconds" in keys else "dates" if "from" in keys or "to" in keys else "calendar"


Period = Annotated[
    Annotated[CalendarModel, Tag("calendar")]
    | Annotated[LengthModel, Tag("length")]
    | Annotated[DatesModel, Tag("dates")],
    Discriminator(_kind_of_period),
]


class LimitsModel(Model):
    """Requests that pass, whatever they cost."""

    per_second: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=RATE_MIN, le=RATE_MAX)] | None = None
    burst: Annotated[Whole, Field(ge=1, le=BURST_MAX)] | None = None
    per_day: Annotated[Whole, Field(ge=1, le=DAY_LIMIT_MAX)] | None = None

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> LimitsModel:
        if self.burst is not None and self.per_second is None:
            raise conflict([("burst", "has no meaning without per_second")])
        return self

    def limits(self) -> RateLimits:
        return RateLimits(self.per_second or Decimal(0), self.burst or 0, self.per_day or 0)


class ApiKeyModel(Model):
    """A key by its SHA-256, or in plain text, of which only the hash is kept."""

    sha256: str | None = None
    key: SecretStr | None = None

    @model_validator(mode="after")
    def _is_one_good_key(self) -> ApiKeyModel:
        if (self.sha256 is None) == (self.key is None):
            raise ValueError("should have either sha256 or key")
        if self.sha256 is not None and not is_sha256(self.sha256.lower()):
            raise conflict([("sha256", "should be 64 hexadecimal digits")])
        if self.key is not None:
            try:
                digest_of(self.key.get_secret_value())
            except ValueError as error:
                raise conflict([("key", str(error))]) from None
        return self

    def digest(self) -> str:
        return self.sha256.lower() if self.sha256 is not None else digest_of(self.key.get_secret_value())  # type: ignore[union-attr]
