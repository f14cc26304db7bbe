"""What the state machine (machine.py) draws from: accounts, tables, operations, and what a loader may send."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.integration.ledger.gateway import Op
from tests.reference.account import Account, Subscription
from tests.reference.messages import Load, Plan
from tests.reference.pricing import MAX_INT, Table, scaled

ACCOUNTS = ("prepaid", "overage", "postpaid", "limited", "stranger")
METRICS = ("api_calls", "payments", "reports")
GATEWAYS = ("gw-a", "gw-b", "gw-c")
SCOPES = ("k1", "k2", "k3")
BODIES = ("a", "b")
RECORDS = tuple(f"r{number}" for number in range(12))
REPEATS_MAX = 2

DAY_MS = 86_400_000
LENGTH_MS = 3 * DAY_MS
START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
DIGITS = 2
DIGITS_MAX = 5
UNITS_MAX = 5000
MAIN, EXTRA = "main", "extra"
EXTRA_LENGTH_MS = 17 * 3_600_000
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
        ["hold"] * 5 + ["settle"] * 4 + ["hold once"] * 5 + ["settle once"] * 3 + ["release"] * 2 + ["late", "replay"]
    ),
    account=st.sampled_from(ACCOUNTS),
    metric=st.sampled_from(METRICS[:1] * 3 + METRICS),
    units=units,
    pick=st.integers(0, 7),
    scope=st.sampled_from(SCOPES[:1] * 3 + SCOPES),
    body=st.sampled_from(BODIES[:1] * 4 + BODIES),
    repeats_max=st.integers(0, REPEATS_MAX),
    refuses=st.booleans(),
    record=st.sampled_from(RECORDS),
    answered=st.booleans(),
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
        "is odd": st.just(True),
        "extra": st.none() | price_lists,
        "lacks the main one": st.just(True),
        "fence": st.integers(1, 3),
    },
)  # fmt: skip
garbage = st.sampled_from(
    [b"", b"x", b"\0\0\0", b"\0\0\1\xc1", b"\0\0\1\x80", b"a text", b"\0\0\3\xdc\xff\xff", bytes([0, 0, 14] + [0] * 15)]
)


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
    subscriptions: dict[str, Subscription] = {}
    if stored is None or policy is None:
        version, stored_digits = 0, DIGITS
        plan = Plan({"api_calls": TABLES[0]}, START_MS, START_MS + LENGTH_MS, name=MAIN)
        policy = Load(account, (plan,), ceiling=200)
    else:
        assert stored.digits is not None
        version, stored_digits = stored.version, stored.digits
        subscriptions = {of.name: of for of in stored.subscriptions if of.end_ms < MAX_INT}
    digits = change.get("digits", stored_digits)
    scale = 10 ** (digits - DIGITS)
    odd = int(digits > DIGITS and "is odd" in change)

    def amount(before: int) -> int:
        """Money of the load before, by the new decimals."""
        return int(before * 10**digits // 10**policy.digits)

    def prices(name: str) -> dict[str, Table]:
        told = change.get("prices" if name == MAIN else "extra")
        if told is not None:
            return {metric: scaled(table, lambda n: n * scale + odd) for metric, table in told.items()}
        of_plan = next((plan.prices for plan in policy.plans if plan.name == name), {})
        return {metric: scaled(table, amount) for metric, table in of_plan.items()}

    def plan_of(name: str) -> Plan:
        known = subscriptions.get(name)
        length = LENGTH_MS if name == MAIN else EXTRA_LENGTH_MS
        start, end = (known.start_ms, known.end_ms) if known else (START_MS, START_MS + length)
        if not known and version:
            start, end = now_ms - 700, now_ms - 700 + length
        bounds = {
            "as stored": (start, end),
            "new one now": (now_ms, now_ms + length),
            "new one in the past": (max(start, now_ms - 700), max(start, now_ms) + 2 * length),
            "before the stored one": (start - length, start),
            "other end": (start, end + length),
        }[period]
        return Plan(
            prices(name),
            *bounds,
            following=tuple(bounds[1] + (k + 1) * length // 2 for k in following),
            expected_start_ms={"an old start": start - length, "all but the start": None, None: None}.get(knows, start),
            name=name,
        )

    names = [name for name in (MAIN, EXTRA) if name in subscriptions] or [MAIN]
    if change.get("extra") is not None:
        names = [MAIN, EXTRA]
    elif "extra" in change:
        names = [MAIN]
    if "lacks the main one" in change and EXTRA in names:
        names = [EXTRA]
    ceiling = None if policy.ceiling is None else amount(policy.ceiling)
    if "ceiling" in change:
        ceiling = None if change["ceiling"] is None else change["ceiling"] * scale
    rate_interval_us, burst = change.get("rate", (policy.rate_interval_us, policy.burst))
    return Load(
        account=account,
        plans=tuple(plan_of(name) for name in names),
        ceiling=ceiling,
        expected_version=version - 1 if knows == "an old version" else version,
        status=change.get("status", 0),
        counts_unsettled=change.get("counts_unsettled", policy.counts_unsettled),
        rate_interval_us=rate_interval_us,
        burst=burst,
        day_limit=change.get("day_limit", policy.day_limit),
        unsettled=change["unsettled"] * scale + odd if "unsettled" in change else None,
        digits=digits,
        expected_digits=stored_digits + (1 if knows == "other digits" else 0),
        fence=change.get("fence"),
        view=f"after {version}",
    )


def most_units(account: Account, metric: str) -> int | None:
    """The largest hold that the funds allow; None if they allow any."""
    available = account.available()
    is_priced = metric in account.subscription_for(metric).live
    if available is None or not is_priced or account.exposure(metric, UNITS_MAX) <= available:
        return None
    low, high = 0, UNITS_MAX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if account.exposure(metric, middle) <= available else (low, middle)
    return low
