"""The accounts file: what it says becomes specs, what is wrong becomes lines."""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.config.errors import ConfigError
from sidecar.ledger.accounts.account_spec import AccountSpec, RateLimits, Status
from sidecar.ledger.accounts.accounts_file import load_accounts
from sidecar.ledger.accounts.periods import CalendarPeriods, EqualPeriods, FixedPeriod
from sidecar.ledger.pricing.price_tables import Graduated, Package, Standard, Tier, Volume

FILE = Path("accounts.yaml")
KEY = "sk_0123456789abcdef"
SHA = hashlib.sha256(KEY.encode()).hexdigest()

EVERYTHING = f"""\
accounts:
  - id: tpp-prepaid
    mode: prepaid
    currency: GBP
    funds: 100.10
    overdraft: "5"
    prices:
      api_calls: &calls {{model: standard, amount: 0.015}}
      sms: {{model: package, amount: 4, size: 100, free: 10}}
    period: {{every: month, timezone: Europe/London, anchor: 15}}
    limits: {{per_second: 2.5, burst: 20, per_day: 1000}}
    api_keys: [{{key: {KEY}}}, {{sha256: {"AB" * 32}}}]
  - id: PSDGB-FCA-123456
    mode: overage
    status: suspended
    currency: JPY
    spending_cap: 5000
    prices:
      api_calls: {{model: graduated, tiers: [{{up_to: 10000}}, {{unit: 0.1, flat: 2}}]}}
    period: {{seconds: 3600}}
  - id: tpp-postpaid
    mode: postpaid
    currency: KWD
    credit_limit: 1000
    unsettled: 12.345
    prices:
      api_calls: *calls
      files: {{model: volume, tiers: [{{up_to: 5, unit: 2}}, {{unit: 1}}]}}
    period: {{from: 2026-11-01T00:00:00Z, to: "2026-12-01T00:00:00+01:00"}}
"""


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> tuple[AccountSpec, ...]:
    FILE.write_text(text)
    return load_accounts(FILE)


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def account(**changes: str) -> str:
    """A file of one good prepaid account, each key on a line of its own from line 2, with changes; "" drops a key."""
    keys = {
        "id": "tpp",
        "mode": "prepaid",
        "currency": "GBP",
        "funds": "10",
        "prices": "{api_calls: {model: standard, amount: 0.01}}",
        "period": "{every: month}",
    } | changes
    lines = [f"{key}: {value}\n" for key, value in keys.items() if value]
    return "accounts:\n  - " + "    ".join(lines)


def test_every_key_is_read() -> None:
    prepaid, overage, postpaid = read(EVERYTHING)
    calls = Standard(Decimal("0.015"))

    assert prepaid == AccountSpec(
        id="tpp-prepaid",
        mode="prepaid",
        currency="GBP",
        funds=Decimal("100.10"),
        overdraft=Decimal(5),
        prices={"api_calls": calls, "sms": Package(Decimal(4), 100, 10)},
        period=CalendarPeriods("month", "Europe/London", 15),
        limits=RateLimits(Decimal("2.5"), 20, 1000),
        api_keys=(SHA, "ab" * 32),
    )
    assert overage == AccountSpec(
        id="PSDGB-FCA-123456",
        mode="overage",
        status=Status.SUSPENDED,
        currency="JPY",
        spending_cap=Decimal(5000),
        prices={
            "api_calls": Graduated((Tier(10_000, Decimal(0)), Tier(None, Decimal("0.1"), Decimal(2)))),
        },
        period=EqualPeriods(3_600_000),
        api_keys=(),
    )
    assert postpaid == AccountSpec(
        id="tpp-postpaid",
        mode="postpaid",
        currency="KWD",
        credit_limit=Decimal(1000),
        unsettled=Decimal("12.345"),
        prices={"api_calls": calls, "files": Volume((Tier(5, Decimal(2)), Tier(None, Decimal(1))))},
        period=FixedPeriod(1_793_491_200_000, 1_796_079_600_000),
        api_keys=(),
    )


@pytest.mark.parametrize("amount", ["0.1", '"0.1"', "0.10", "1e-1", ".1"])
def test_an_amount_is_exact_quoted_or_not(amount: str) -> None:
    (spec,) = read(account(prices=f"{{api_calls: {{model: standard, amount: {amount}}}}}"))

    assert spec.prices["api_calls"] == Standard(Decimal("0.1"))


@pytest.mark.parametrize(
    ("currency", "amount", "digits"),
    [("JPY", "5", 0), ("JPY", "0.1", 1), ("GBP", "5", 2), ("GBP", "0.015", 3), ("GBP", "0.0150", 3), ("KWD", "0.1", 3)],
)
def test_money_has_the_decimals_of_its_currency_and_more_if_a_price_needs_them(
    currency: str, amount: str, digits: int
) -> None:
    (spec,) = read(account(currency=currency, prices=f"{{api_calls: {{model: standard, amount: {amount}}}}}"))

    assert spec.digits_needed() == digits


@pytest.mark.parametrize(
    ("period", "rule"),
    [
        ("{every: hour}", EqualPeriods(3_600_000)),
        ("{every: day, timezone: Asia/Tokyo}", CalendarPeriods("day", "Asia/Tokyo")),
        ("{every: week, anchor: 7}", CalendarPeriods("week", "UTC", 7)),
        ("{every: month}", CalendarPeriods("month")),
        ("{every: year}", CalendarPeriods("year", "UTC", (1, 1))),
        ('{every: year, anchor: "04-06"}', CalendarPeriods("year", "UTC", (4, 6))),
        ("{every: year, anchor: 04-06}", CalendarPeriods("year", "UTC", (4, 6))),
        ("{seconds: 90}", EqualPeriods(90_000)),
    ],
)
def test_a_period_is_a_rule(period: str, rule: object) -> None:
    assert read(account(period=period))[0].period == rule


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": "a b"}, "2: accounts[0].id: should be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ + -"),
        ({"id": ""}, "2: accounts[0].id: is missing"),
        ({"id": "7"}, "2: accounts[0].id: should be text; put it in quotes, not 7"),
        ({"mode": "free"}, "3: accounts[0].mode: should be 'prepaid', 'overage' or 'postpaid', not 'free'"),
        ({"currency": "GBX"}, "4: accounts[0].currency: 'GBX' is not a currency of ISO 4217 in capitals"),
        ({"currency": "gbp"}, "4: accounts[0].currency: 'gbp' is not a currency of ISO 4217 in capitals"),
        ({"funds": "much"}, "5: accounts[0].funds: should be a decimal number like 12.50"),
        ({"funds": "1_000"}, "5: accounts[0].funds: should be a decimal number like 12.50"),
        ({"funds": "'1e9'"}, "5: accounts[0].funds: should be a decimal number like 12.50"),
        ({"funds": "NaN"}, "5: accounts[0].funds: should be a decimal number like 12.50"),
        ({"funds": "true"}, "5: accounts[0].funds: should be a decimal number like 12.50"),
        (
            {"funds": "0.0000000000001"},
            "5: accounts[0].funds: 1E-13 has 13 decimals; at most 12 can be represented",
        ),
        ({"funds": ""}, "2: accounts[0].funds: is missing: a prepaid account spends them"),
        (
            {"funds": "100000000000000"},
            "2: accounts[0]: account tpp, funds: 100000000000000 with 2 decimals does not fit below 2^53",
        ),
        ({"mode": "overage"}, "5: accounts[0].funds: has no meaning in the mode overage"),
        (
            {"mode": "postpaid"},
            "5: accounts[0].funds: has no effect: a postpaid account without credit_limit may spend any amount; "
            "set credit_limit too",
        ),
        ({"credit_limit": "5"}, "8: accounts[0].credit_limit: has no meaning in the mode prepaid"),
        ({"overdraft": "-5"}, "8: accounts[0].overdraft: should be at least 0, not -5"),
        ({"status": "paused"}, "8: accounts[0].status: should be 'active', 'suspended' or 'closed', not 'paused'"),
        ({"prices": "{}"}, "6: accounts[0].prices: should have at least 1 entry"),
        (
            {"prices": "{API: {model: standard, amount: 1}}"},
            "6: accounts[0].prices.API: should be named like api_calls: lower-case letters, digits and "
            "single underscores",
        ),
        (
            {"prices": "{a: {model: percentage, amount: 1}}"},
            "6: accounts[0].prices.a.model: should be one of 'standard', 'graduated', 'volume', 'package', "
            "not 'percentage'",
        ),
        (
            {"prices": "{a: {model: standard, amount: -1}}"},
            "6: accounts[0].prices.a.amount: should be at least 0, not -1",
        ),
        (
            {"prices": "{a: {model: standard, amount: 1, size: 3}}"},
            "6: accounts[0].prices.a.size: is not a known key; known are amount, model",
        ),
        (
            {"prices": "{a: {model: package, amount: 1, size: 0}}"},
            "6: accounts[0].prices.a.size: should be at least 1, not 0",
        ),
        (
            {"prices": "{a: {model: graduated, tiers: [{up_to: 5, unit: 1}]}}"},
            "6: accounts[0].prices.a: the price, tier 1: the last tier, and only it, is without an upper bound",
        ),
        (
            {"prices": "{a: {model: volume, tiers: [{up_to: 5}, {up_to: 5}, {}]}}"},
            "6: accounts[0].prices.a: the price, tier 2: upper bound 5 is not above 5",
        ),
        ({"limits": "{per_second: 0}"}, "8: accounts[0].limits.per_second: should be at least 0.001, not 0"),
        ({"limits": "{burst: 5}"}, "8: accounts[0].limits.burst: has no meaning without per_second"),
        ({"api_keys": "[{}]"}, "8: accounts[0].api_keys[0]: should have either sha256 or key"),
        ({"api_keys": "[{sha256: abc}]"}, "8: accounts[0].api_keys[0].sha256: should be 64 hexadecimal digits"),
        (
            {"api_keys": "[{key: short}]"},
            "8: accounts[0].api_keys[0].key: should have at least 16 random characters: a shorter key can be guessed",
        ),
        (
            {"api_keys": "[{key: 'a key, with a comma and spaces'}]"},
            "8: accounts[0].api_keys[0].key: should be at most 512 visible ASCII characters without comma",
        ),
    ],
)
def test_a_mistake_is_answered_with_its_line_and_key(changes: dict[str, str], expected: str) -> None:
    assert errors(account(**changes)) == [f"accounts.yaml:{expected}"]


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("{every: fortnight}", "every: should be 'hour', 'day', 'week', 'month' or 'year', not 'fortnight'"),
        ("{}", "every: is missing"),
        ("{every: month, timezone: Mars}", "timezone: 'Mars' is not a time zone like Europe/London"),
        ("{every: month, timezone: ../x}", "timezone: '../x' is not a time zone like Europe/London"),
        ("{every: month, anchor: 32}", "anchor: should be the day of the month, 1 to 31"),
        ("{every: week, anchor: 0}", "anchor: should be the day of the week, 1 (Monday) to 7"),
        ("{every: year, anchor: 13-01}", "anchor: should be month and day like 04-06"),
        ("{every: day, anchor: 3}", "anchor: has no meaning for days"),
        ("{every: hour, timezone: Asia/Tokyo}", "timezone: has no meaning for hours, which are those of UTC"),
        ("{seconds: 0}", "seconds: should be at least 1, not 0"),
        ("{from: 2026-01-01T00:00:00Z}", "to: is missing"),
        ("{from: 5, to: 2026-01-01T00:00:00Z}", "from: should be a time like 2026-01-31T00:00:00Z"),
        (
            "{from: 2026-01-01, to: 2026-02-01T00:00:00Z}",
            "from: should say its offset from UTC: 2026-01-31T00:00:00Z or …+01:00",
        ),
        ("{from: 2026-02-01T00:00:00Z, to: 2026-02-01T01:00:00+01:00}", "to: should be later than from"),
    ],
)
def test_a_mistake_in_a_period_is_answered_with_its_key(period: str, expected: str) -> None:
    assert errors(account(period=period)) == [f"accounts.yaml:7: accounts[0].period.{expected}"]


def test_an_account_may_be_there_once() -> None:
    text = account() + account().removeprefix("accounts:\n")

    assert errors(text) == ["accounts.yaml:8: accounts[1].id: is that of accounts[0] too"]


def test_a_key_may_be_one_account_s_alone_and_is_not_repeated() -> None:
    first, second = account(api_keys=f"[{{key: {KEY}}}]"), account(id="other", api_keys=f"[{{sha256: {SHA}}}]")

    assert errors(first + second.removeprefix("accounts:\n")) == [
        "accounts.yaml:15: accounts[1].api_keys[0]: is a key of accounts[0] too"
    ]


@pytest.mark.parametrize(
    "keys",
    [
        f"[{{key: {KEY}, sha256: {SHA}}}]",
        f"[{{kee: {KEY}}}]",
        f"[{{key: '{KEY} '}}]",
        f"[{{key: [{KEY}]}}]",
        f"[{KEY}]",
    ],
)
def test_an_error_never_repeats_a_key_in_plain_text(keys: str) -> None:
    assert KEY not in "\n".join(errors(account(api_keys=keys)))


def test_a_spec_never_holds_a_key_in_plain_text() -> None:
    (spec,) = read(account(api_keys=f"[{{key: {KEY}}}]"))

    assert KEY not in repr(spec)


def test_a_file_without_accounts_says_so() -> None:
    assert errors("other: 1\n") == [
        "accounts.yaml:1: accounts: is missing",
        "accounts.yaml:1: other: is not a known key; known are accounts",
    ]
    for nothing in ("", "# accounts:\n", "---\n"):
        assert errors(nothing) == ["accounts.yaml is empty; set at least accounts"]


@pytest.mark.parametrize(
    ("per_second", "interval_us"), [("1", 1_000_000), ("3", 333_334), ("0.5", 2_000_000), ("1000000", 1), ("0", 0)]
)
def test_the_interval_between_requests_never_lets_more_pass_than_the_rate(per_second: str, interval_us: int) -> None:
    assert RateLimits(Decimal(per_second)).interval_us == interval_us


@pytest.mark.parametrize(
    ("mode", "amounts", "ceiling", "counts_unsettled"),
    [
        ("prepaid", {"funds": "10", "overdraft": "2"}, "12", True),
        ("prepaid", {"funds": "-3"}, "-3", True),
        ("overage", {}, None, False),
        ("overage", {"spending_cap": "50"}, "50", False),
        ("postpaid", {}, None, True),
        ("postpaid", {"credit_limit": "50"}, "50", True),
        ("postpaid", {"funds": "10", "credit_limit": "50"}, "60", True),
    ],
)
def test_the_ceiling_follows_from_the_mode(
    mode: str, amounts: dict[str, str], ceiling: str | None, counts_unsettled: bool
) -> None:
    (spec,) = read(account(**({"mode": mode, "funds": ""} | amounts)))

    assert spec.ceiling == (None if ceiling is None else Decimal(ceiling))
    assert spec.counts_unsettled is counts_unsettled


def test_no_example_has_the_hash_of_a_key_that_anyone_can_guess() -> None:
    root = Path(__file__).parents[3]
    guesses = {"foo", "bar", "test", "secret", "password", "changeme", "api-key", "my-secret-key-0123456789"}
    for file in (root / "examples").glob("*.yaml"):
        text = file.read_text()
        known = {sha256(guess.encode()).hexdigest() for guess in guesses | set(re.findall(r"[\w-]+", text))}
        assert not known & set(re.findall(r"\b[0-9a-f]{64}\b", text)), file
