"""When the billing periods of a subscription end, beyond the current one that Lago tells
(lago-api ``app/services/subscriptions/dates_service.rb``).

Only a forecast: it lets the ledger close periods on time while Lago is out of reach. Lago's next answer overrules it.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sidecar.billing.lago.models import Plan, Subscription

ENDS_AHEAD: Final = 24
_MONTHS: Final = {"monthly": 1, "quarterly": 3, "semiannual": 6, "yearly": 12}
_DAY_MS: Final = 86_400_000


def zone(name: str) -> ZoneInfo:
    """The time zone; UTC for a name that nobody knows."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


def next_ends_ms(subscription: Subscription, plan: Plan, timezone: str) -> tuple[int, ...]:
    """Ends of the periods after the current one, in order; () when they cannot be told.

    With none the ledger repeats the length of the last period.
    """
    start, end = subscription.period_start_ms, subscription.period_end_ms
    if start is None or end is None or end - start < _DAY_MS:
        return ()
    zoned = zone(timezone)
    first = datetime.fromtimestamp(end / 1000, zoned).replace(tzinfo=None)
    if plan.interval == "weekly":
        steps = [first + timedelta(weeks=count) for count in range(1, ENDS_AHEAD + 1)]
    else:
        months = _MONTHS.get(plan.interval, 1)
        if plan.bill_charges_monthly:
            months = 1
        day = _anchor_day(subscription, first, zoned)
        steps = [_add_months(first, months * count, day) for count in range(1, ENDS_AHEAD + 1)]
    ends: list[int] = []
    for step in steps:
        at_ms = int(step.replace(tzinfo=zoned).astimezone(UTC).timestamp()) * 1000
        if at_ms > (ends[-1] if ends else end):
            ends.append(at_ms)
    return tuple(ends)


def _anchor_day(subscription: Subscription, end: datetime, zoned: ZoneInfo) -> int:
    if subscription.billing_time == "anniversary" and subscription.subscription_at_ms is not None:
        return datetime.fromtimestamp(subscription.subscription_at_ms / 1000, zoned).day
    return end.day


def _add_months(instant: datetime, months: int, day: int) -> datetime:
    index = instant.year * 12 + instant.month - 1 + months
    year, month = divmod(index, 12)
    month += 1
    return instant.replace(year=year, month=month, day=min(day, calendar.monthrange(year, month)[1]))
