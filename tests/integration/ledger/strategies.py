"""What the state machine (machine.py) draws from: accounts, tables, operations, and what a loader may send."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.integration.ledger.gateway import Op
from tests.reference.account import Account
from tests.reference.messages import Load
from tests.reference.pricing import MAX_INT, Table, scaled

ACCOUNTS = ("prepaid", "overage", "postpaid", "limited", "stranger")
METRICS = ("api_calls", "payments", "reports")
GATEWAYS = ("gw-a", "gw-b", "gw-c")
SCOPES = ("k1", "k2", "k3")

DAY_MS = 86_400_000
LENGTH_MS = 3 * DAY_MS
START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
DIGITS = 2
DIGITS_MAX = 5
UNITS_MAX = 5000
PERIODS = ["new one now", "new one in the past", "before the stored one", "other end"]
KNOWS_NOT = ["all but the start", "an old version", "other digits", "an old start"]

# Money in cents; small numbers, so that ends of tiers, of packages and of funds are met often.
TABLES: tuple[Table, ...] = (
    ("s", 3),
    ("s", 0),
    ("g", 5, 0, 0, 20, 7, 10, MAX_INT, 2, 0),
    ("g", 10, 1, 25, MAX_INT, 4, 0),
    ("v", 10, 10, 0, 30, 6, 5, MAX_INT, 2, 0),
    ("v", 5, 0, 3, MAX_INT, 9, 4),
    ("p", 10, 5, 40),
    ("p", 3, 0, 7),
)


tables = st.none() | st.sampled_from(TABLES)
price_lists = st.tuples(*[tables] * len(METRICS)).map(
    lambda row: {metric: table for metric, table in zip(METRICS, row, strict=True) if table is not None}
)
ceilings = st.one_of(st.none(), st.integers(-50, 120), st.integers(100, 900), st.just(10**6))
units = st.one_of(st.just(1), st.integers(1, 6), st.integers(1, 40))
ops = st.builds(
    Op,
    kind=st.sampled_from(
        ["hold"] * 5 + ["settle"] * 4 + ["hold once"] * 3 + ["settle once"] * 3 + ["release", "late", "late once"]
    ),
    account=st.sampled_from(ACCOUNTS),
    metric=st.sampled_from(METRICS[:1] * 3 + METRICS),
    units=units,
    pick=st.integers(0, 7),
    scope=st.sampled_from(SCOPES),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "ceiling": ceilings,
        "counts_unsettled": st.booleans(),
        "prices": price_lists,
        "status": st.sampled_from([0, 0, 1, 2]),
        "rate": st.sampled_from([(0, 0), (250_000, 3), (1_000_000, 1), (1_000_000, 8)]),
        "day_limit": st.sampled_from([0, 2, 7]),
        "unsettled": st.integers(0, 80),
        "digits": st.integers(DIGITS, DIGITS_MAX),
    },
)  # fmt: skip


def compose_load(
    account: str,
    stored: Account | None,
    now_ms: int,
    change: dict[str, Any],
    period: str,
    following: list[int],
    knows: str | None,
) -> Load:
    """What a loader sends that knows ``stored``, or not quite (``knows``), and has ``change`` to tell."""
    policy = stored.policy if stored else None
    if stored is None or policy is None:
        version, stored_digits, start, end = 0, DIGITS, START_MS, START_MS + LENGTH_MS
        policy = Load(account, {"api_calls": TABLES[0]}, start, end, ceiling=200)
    else:
        assert stored.digits is not None
        version, stored_digits, start, end = stored.version, stored.digits, stored.start_ms, stored.end_ms
    digits = max(stored_digits, change.get("digits", stored_digits))
    scale = 10 ** (digits - DIGITS)
    ceiling = change["ceiling"] * scale if change.get("ceiling") is not None else None
    if "ceiling" not in change and policy.ceiling is not None:
        ceiling = policy.ceiling * 10 ** (digits - policy.digits)
    if "prices" in change:
        prices = {metric: scaled(table, scale) for metric, table in change["prices"].items()}
    else:
        prices = {m: scaled(t, 10 ** (digits - policy.digits)) for m, t in policy.prices.items()}
    rate_interval_us, burst = change.get("rate", (policy.rate_interval_us, policy.burst))
    period_start, period_end = {
        "as stored": (start, end),
        "new one now": (now_ms, now_ms + LENGTH_MS),
        "new one in the past": (max(start, now_ms - 700), now_ms + 2 * LENGTH_MS),
        "before the stored one": (start - LENGTH_MS, start),
        "other end": (start, end + LENGTH_MS),
    }[period]
    expected_start: int | None = start
    if knows == "an old start":
        expected_start = start - LENGTH_MS
    elif knows in (None, "all but the start"):
        expected_start = None
    return Load(
        account=account,
        prices=prices,
        period_start_ms=period_start,
        period_end_ms=period_end,
        ceiling=ceiling,
        expected_version=version - 1 if knows == "an old version" else version,
        status=change.get("status", 0),
        counts_unsettled=change.get("counts_unsettled", policy.counts_unsettled),
        rate_interval_us=rate_interval_us,
        burst=burst,
        day_limit=change.get("day_limit", policy.day_limit),
        periods=tuple(period_end + (k + 1) * LENGTH_MS // 2 for k in following),
        unsettled=change["unsettled"] * scale if "unsettled" in change else None,
        digits=digits,
        expected_digits=stored_digits + (1 if knows == "other digits" else 0),
        expected_start_ms=expected_start,
    )


def most_units(account: Account, metric: str) -> int | None:
    """The largest hold that the funds allow; None if they allow any."""
    available = account.available()
    if available is None or metric not in account.live or account.exposure(metric, UNITS_MAX) <= available:
        return None
    low, high = 0, UNITS_MAX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if account.exposure(metric, middle) <= available else (low, middle)
    return low
