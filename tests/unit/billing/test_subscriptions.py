"""Several subscriptions of one customer: a period for each, one pool of funds."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest

from sidecar.billing.lago.models import Fee, Invoice, Subscription
from sidecar.billing.reconcile.reconcile_state import ReconcileState, decode_reconcile_state
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.account_state import SubscriptionState
from tests.unit.billing.scenario import (
    AUGUST,
    DAY_MS,
    JULY,
    NOW,
    SEPTEMBER,
    Scenario,
    invoice,
    plan,
    standard,
    subscription,
    usage,
    wallet,
)

HOUR_MS = 3_600_000
YEAR_END = JULY + 184 * DAY_MS  # 2027-01-01
WEEK_END = AUGUST + 16 * DAY_MS  # Monday 2026-08-17


def yearly(metric: str = "reports", **options: object) -> Subscription:
    of = plan(standard("1", metric), code=f"year-{metric}", interval="yearly")
    values: dict[str, object] = {
        "external_id": "ext-2", "started_at_ms": AUGUST + DAY_MS, "created_at_ms": AUGUST + DAY_MS,
        "period_start_ms": AUGUST + DAY_MS, "period_end_ms": YEAR_END,
    } | options  # fmt: skip
    return subscription(of, "sub-2", **values)


def weekly(metric: str = "payments") -> Subscription:
    of = plan(standard("2", metric), code=f"week-{metric}", interval="weekly")
    return subscription(
        of, "sub-3", external_id="ext-3", started_at_ms=AUGUST + 9 * DAY_MS, created_at_ms=AUGUST + 9 * DAY_MS,
        period_start_ms=AUGUST + 9 * DAY_MS, period_end_ms=WEEK_END,
    )  # fmt: skip


def with_three() -> Scenario:
    scenario = Scenario().lago(subscriptions=(subscription(), yearly(), weekly()))
    scenario.load()
    return scenario


def named(scenario: Scenario, name: str) -> SubscriptionState:
    found = scenario.state.rolled_over(scenario.now_ms).named(name)
    assert found is not None
    return found


def links(saved: ReconcileState, name: str) -> list[PeriodLink]:
    return sorted((each for each in saved.links.values() if each.ledger_subscription == name), key=lambda e: e.key)


def stages(scenario: Scenario) -> list[tuple[int, str, str]]:
    return [
        (each.period.start_ms, each.period.subscription, each.stage) for each in scenario.desired().billing_statuses
    ]


def test_each_subscription_has_its_own_period_and_metrics() -> None:
    scenario = with_three()

    assert [(each.name, each.start_ms, each.end_ms, set(each.prices)) for each in scenario.state.subscriptions] == [
        ("", AUGUST, SEPTEMBER, {"api_calls"}),
        ("ext-2", AUGUST + DAY_MS, YEAR_END, {"reports"}),
        ("ext-3", AUGUST + 9 * DAY_MS, WEEK_END, {"payments"}),
    ]
    assert [each.external_subscription_id for each in links(scenario.saved, "ext-3")] == ["ext-3"]
    assert scenario.desired().alerts == ()


def test_they_share_the_funds() -> None:
    scenario = with_three()

    scenario.use(10)
    scenario.use(3, "reports")
    scenario.use(4, "payments")

    assert scenario.available == Decimal(100) - 1 - 3 - 8


def test_a_month_and_a_week_end_while_the_year_goes_on() -> None:
    scenario = with_three()
    scenario.use(10)
    scenario.use(3, "reports")
    scenario.use(4, "payments")
    scenario.now_ms = WEEK_END + HOUR_MS
    next_week = replace(weekly(), period_start_ms=WEEK_END, period_end_ms=WEEK_END + 7 * DAY_MS)
    scenario.lago(subscriptions=(subscription(), yearly(), next_week)).load()

    assert (named(scenario, "ext-3").start_ms, named(scenario, "").start_ms) == (WEEK_END, AUGUST)
    assert stages(scenario) == [(AUGUST + 9 * DAY_MS, "ext-3", "unbilled")]
    assert scenario.available == Decimal(88)

    final = billed("sub-3", AUGUST + 9 * DAY_MS, WEEK_END, "payments", 4, 800)
    scenario.lago(invoices=(final,), wallets=(wallet("92"),)).load()

    assert stages(scenario) == [(AUGUST + 9 * DAY_MS, "ext-3", "final")]
    assert scenario.available == Decimal(88)
    assert scenario.state.money(scenario.state.unsettled) == 0


def billed(sub: str, start: int, end: int, metric: str, units: int, cents: int, lago_id: str = "i1") -> Invoice:
    fee = Fee("f-" + lago_id, "charge", metric, sub, Decimal(units), cents, 0)
    return invoice(start=start, end=end, lago_id=lago_id, cents=cents, sub=sub, fees=(fee,))


def test_two_months_that_began_together_are_billed_apart() -> None:
    """Their periods have one start; an invoice of one says nothing of the other."""
    second = replace(yearly("payments"), plan=plan(standard("2", "payments"), code="pay"), started_at_ms=JULY,
                     period_start_ms=AUGUST, period_end_ms=SEPTEMBER)  # fmt: skip
    scenario = Scenario().lago(subscriptions=(subscription(), second))
    scenario.load()
    scenario.use(10)
    scenario.use(5, "payments")
    scenario.now_ms = SEPTEMBER + HOUR_MS
    october = SEPTEMBER + 30 * DAY_MS
    later = tuple(replace(each, period_start_ms=SEPTEMBER, period_end_ms=october) for each in (subscription(), second))
    one = billed("sub-1", AUGUST, SEPTEMBER, "api_calls", 10, 100)
    scenario.lago(subscriptions=later, invoices=(one,), wallets=(wallet("99"),)).load()

    assert stages(scenario) == [(AUGUST, "", "final"), (AUGUST, "ext-2", "unbilled")]
    assert scenario.available == Decimal(89)
    assert set(scenario.saved.invoiced) == {(AUGUST, "")}

    other = billed("sub-2", AUGUST, SEPTEMBER, "payments", 5, 1000, "i2")
    scenario.lago(invoices=(other, one), wallets=(wallet("89"),)).load()

    assert stages(scenario) == [(AUGUST, "", "final"), (AUGUST, "ext-2", "final")]
    assert scenario.available == Decimal(89)


def test_the_state_of_all_of_them_is_stored_and_read() -> None:
    scenario = with_three()
    scenario.use(4, "payments")
    scenario.now_ms = WEEK_END + HOUR_MS
    next_week = replace(weekly(), period_start_ms=WEEK_END, period_end_ms=WEEK_END + 7 * DAY_MS)
    final = billed("sub-3", AUGUST + 9 * DAY_MS, WEEK_END, "payments", 4, 800)
    scenario.lago(
        subscriptions=(subscription(), yearly(), next_week), invoices=(final,), wallets=(wallet("92"),),
        usages={"ext-2": replace(usage("5", 500), from_ms=AUGUST + DAY_MS, to_ms=YEAR_END)},
    ).load()  # fmt: skip

    saved = scenario.saved
    assert (AUGUST + 9 * DAY_MS, "ext-3") in saved.invoiced
    assert saved.foreign == {(AUGUST + DAY_MS, "ext-2"): Decimal(5)}
    fields = {name.encode(): value.encode() for name, value in saved.fields().items()}
    assert decode_reconcile_state(fields) == saved
    assert f"link:{AUGUST}:sub-1" in saved.fields(), "as releases with one period wrote it"
    assert f"fee:{AUGUST}" in saved.fields()


def test_what_lago_has_counted_elsewhere_is_taken_over_by_each() -> None:
    counted = replace(usage("7", 700), from_ms=AUGUST + DAY_MS, to_ms=YEAR_END)
    reports = replace(counted, charges=(replace(counted.charges[0], metric_code="reports"),))
    scenario = Scenario().lago(
        subscriptions=(subscription(), yearly()), usages={"ext-1": usage("30", 300), "ext-2": reports}
    )

    scenario.load()

    assert {each.name: [(u.metric, u.settled) for u in each.usages] for each in scenario.state.subscriptions} == {
        "": [("api_calls", 30)],
        "ext-2": [("reports", 7)],
    }


def test_one_that_begins_later_begins_with_its_own_period() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(10)

    scenario.lago(subscriptions=(subscription(), yearly())).load()

    assert (named(scenario, "").start_ms, named(scenario, "ext-2").start_ms) == (AUGUST, AUGUST + DAY_MS)
    assert scenario.available == Decimal(99)


@pytest.mark.parametrize("ends", ["", "ext-2"])
def test_one_that_ends_leaves_what_it_owes_and_the_others_go_on(ends: str) -> None:
    scenario = Scenario().lago(subscriptions=(subscription(), yearly()))
    scenario.load()
    scenario.use(10)
    scenario.use(3, "reports")
    over = {"status": "terminated", "terminated_at_ms": NOW - 2000, "plan": None, "period_start_ms": None,
            "period_end_ms": None}  # fmt: skip
    left = [replace(each, **over) if name == ends else each
            for name, each in (("", subscription()), ("ext-2", yearly()))]  # fmt: skip

    scenario.lago(subscriptions=tuple(left)).load()

    assert scenario.state.status is Status.ACTIVE
    assert [each.name for each in scenario.state.subscriptions] == [{"": "ext-2", "ext-2": ""}[ends]]
    assert scenario.available == Decimal(96)
    (over_link,) = links(scenario.saved, ends)
    assert (over_link.is_current, over_link.ledger_end_ms, over_link.lago_to_ms) == (
        False,
        NOW // 1000 * 1000 + 1000,
        NOW - 2000,
    )
    start = over_link.ledger_start_ms
    assert stages(scenario) == [(start, ends, "unbilled")]
    sub, metric, units, cents = ("sub-1", "api_calls", 10, 100) if not ends else ("sub-2", "reports", 3, 300)
    scenario.lago(
        invoices=(billed(sub, start, NOW - 2000, metric, units, cents),), wallets=(wallet(str(100 - cents // 100)),)
    ).load()
    assert scenario.available == Decimal(96)
    assert scenario.state.unsettled == 0
    scenario.now_ms += 3 * DAY_MS
    scenario.load()
    assert [each.name for each in scenario.state.subscriptions] == [{"": "ext-2", "ext-2": ""}[ends]]


def test_all_of_them_end_and_the_account_is_closed() -> None:
    scenario = with_three()
    scenario.use(10)
    scenario.use(4, "payments")
    gone = [
        replace(each, status="terminated", terminated_at_ms=NOW, plan=None, period_start_ms=None, period_end_ms=None)
        for each in (subscription(), yearly(), weekly())
    ]

    scenario.lago(subscriptions=tuple(gone)).load()

    assert scenario.state.status is Status.CLOSED
    assert scenario.state.money(scenario.state.unsettled) == Decimal(9)


def test_an_upgrade_of_one_leaves_the_period_of_the_other() -> None:
    scenario = Scenario().lago(subscriptions=(subscription(), yearly()))
    scenario.load()
    scenario.use(10)
    scenario.use(3, "reports")
    more = replace(
        yearly(), lago_id="sub-9", plan=plan(standard("2", "reports"), code="max", interval="yearly"),
        started_at_ms=NOW - 3000, period_start_ms=NOW - 3000,
    )  # fmt: skip
    old = replace(yearly(), status="terminated", terminated_at_ms=NOW - 3000, plan=None, period_start_ms=None,
                  period_end_ms=None)  # fmt: skip

    scenario.lago(subscriptions=(subscription(), more, old)).load()

    assert [each.name for each in scenario.state.subscriptions] == ["", "ext-2"]
    assert named(scenario, "").start_ms == AUGUST
    assert named(scenario, "ext-2").start_ms == NOW // 1000 * 1000 + 1000
    assert [each.subscription_id for each in links(scenario.saved, "ext-2")] == ["sub-2", "sub-9"]
    assert scenario.available == Decimal(96)


def test_a_metric_that_another_billed_begins_with_a_period_of_its_own() -> None:
    """What is pushed of a metric is told by the start of its period, so one start cannot have two subscriptions."""
    second = replace(yearly("api_calls"), plan=plan(standard("0.30"), code="pay"), started_at_ms=JULY + DAY_MS,
                     period_start_ms=AUGUST, period_end_ms=SEPTEMBER)  # fmt: skip
    both = replace(second, plan=plan(standard("0.30"), standard("1", "reports"), code="pay"))
    scenario = Scenario().lago(subscriptions=(subscription(), both))
    scenario.load()
    scenario.use(10)
    scenario.use(2, "reports")
    over = replace(subscription(), status="terminated", terminated_at_ms=NOW, plan=None, period_start_ms=None,
                   period_end_ms=None)  # fmt: skip

    scenario.lago(subscriptions=(both, over)).load()

    at = NOW // 1000 * 1000 + 1000
    assert [(each.name, each.start_ms, set(each.prices)) for each in scenario.state.subscriptions] == [
        ("ext-2", at, {"api_calls", "reports"})
    ]
    assert [(each.key, each.metrics) for each in links(scenario.saved, "ext-2")] == [
        ((AUGUST, "ext-2"), ("reports",)),
        ((at, "ext-2"), ("api_calls", "reports")),
    ]
    assert scenario.available == Decimal(97)


def test_tiers_are_not_begun_anew_for_a_metric_that_comes_from_another() -> None:
    tiers = replace(
        standard(metric="reports"), model="graduated",
        properties={"graduated_ranges": [
            {"from_value": 0, "to_value": 10, "per_unit_amount": "1", "flat_amount": "0"},
            {"from_value": 11, "to_value": None, "per_unit_amount": "0.5", "flat_amount": "0"},
        ]},
    )  # fmt: skip
    second = replace(yearly(), plan=plan(standard("0.30"), tiers, code="pay"), started_at_ms=JULY + DAY_MS,
                     period_start_ms=AUGUST, period_end_ms=SEPTEMBER)  # fmt: skip
    scenario = Scenario().lago(subscriptions=(subscription(), second))
    scenario.load()
    scenario.use(2, "reports")
    over = replace(subscription(), status="terminated", terminated_at_ms=NOW, plan=None, period_start_ms=None,
                   period_end_ms=None)  # fmt: skip

    desired = scenario.lago(subscriptions=(second, over)).load()

    assert [(each.name, each.start_ms, set(each.prices)) for each in scenario.state.subscriptions] == [
        ("ext-2", AUGUST, {"reports"})
    ]
    assert ["from the next period on" in alert.message for alert in desired.alerts] == [True]
    october = SEPTEMBER + 30 * DAY_MS
    scenario.now_ms = SEPTEMBER + HOUR_MS
    scenario.lago(subscriptions=(replace(second, period_start_ms=SEPTEMBER, period_end_ms=october), over)).load()
    assert set(named(scenario, "ext-2").prices) == {"api_calls", "reports"}


def test_two_that_shared_a_period_go_on_together_until_their_periods_differ() -> None:
    """As a release in which an account had one period loaded them."""
    second = replace(yearly("payments"), plan=plan(standard("2", "payments"), code="pay"), started_at_ms=JULY,
                     period_start_ms=AUGUST, period_end_ms=SEPTEMBER)  # fmt: skip
    scenario = Scenario().lago(subscriptions=(subscription(), second))
    scenario.load()
    together = {name: replace(link, ledger_subscription="") for name, link in scenario.saved.links.items()}
    scenario.saved = replace(scenario.saved, links=together)
    (first, other) = scenario.state.subscriptions
    scenario.state = replace(
        scenario.state,
        subscriptions=(replace(first, usages=first.usages + other.usages, prices={**first.prices, **other.prices}),),
    )
    scenario.use(3)
    scenario.use(2, "payments")

    scenario.load()

    assert [(each.name, set(each.prices)) for each in scenario.state.subscriptions] == [("", {"api_calls", "payments"})]
    assert scenario.available == Decimal("95.70")

    scenario.now_ms = SEPTEMBER + HOUR_MS
    months = replace(subscription(), period_start_ms=SEPTEMBER, period_end_ms=SEPTEMBER + 30 * DAY_MS)
    weeks = replace(second, period_start_ms=SEPTEMBER, period_end_ms=SEPTEMBER + 6 * DAY_MS)
    scenario.lago(subscriptions=(months, weeks)).load()

    assert [(each.name, set(each.prices)) for each in scenario.state.subscriptions] == [
        ("", {"api_calls"}),
        ("ext-2", {"payments"}),
    ]
    assert scenario.available == Decimal("95.70"), "what they have cost together is owed still"


def test_fees_of_all_are_set_aside_where_they_fall_due() -> None:
    month = subscription(plan(amount_cents=500))
    year = replace(yearly(), plan=plan(standard("1", "reports"), code="year", interval="yearly", amount_cents=4_000))
    only_a_fee = replace(month, lago_id="sub-7", external_id="ext-7", plan=replace(plan(), charges=(), amount_cents=70))
    scenario = Scenario().lago(subscriptions=(month, year, only_a_fee))

    scenario.load()

    assert scenario.saved.fees == {(AUGUST, ""): Decimal("5.70"), (AUGUST + DAY_MS, "ext-2"): Decimal(40)}
    assert scenario.available == Decimal("54.30")


def test_usage_that_only_lago_has_counts_for_the_period_that_it_is_of() -> None:
    scenario = Scenario().lago(subscriptions=(subscription(), yearly()))
    scenario.load()
    scenario.use(3, "reports")
    foreign = replace(usage("9", 900), from_ms=AUGUST + DAY_MS, to_ms=YEAR_END)

    scenario.lago(usages={"ext-1": usage("0", 0), "ext-2": foreign}).load()

    assert scenario.saved.foreign == {(AUGUST + DAY_MS, "ext-2"): Decimal(6)}
    assert scenario.available == Decimal(91)
    scenario.lago(usages={}, unread_usages=frozenset({"ext-1"})).load()
    assert scenario.available == Decimal(97), "what cannot be read now is that of the other one"


def test_old_invoices_are_not_read_for_a_year_that_goes_on() -> None:
    scenario = with_three()

    current = [(each.start_ms, each.name) for each in scenario.state.subscriptions]

    assert scenario.saved.oldest_ms(current) == AUGUST + 9 * DAY_MS
    assert scenario.saved.oldest_ms(current[1:]) == AUGUST, "the month is over, and waits for its invoice"
    assert scenario.saved.oldest_ms([]) == 0


METRICS = {"api_calls": Decimal("0.10"), "payments": Decimal(2), "reports": Decimal(1)}
LENGTHS_MS = {"weekly": 7 * DAY_MS, "monthly": 30 * DAY_MS}


class Customer:
    """What Lago has of one customer: subscriptions that begin, change their plan, and end. Equal prices everywhere, so
    that what was served tells what it cost, whoever bills it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.scenario = Scenario().lago(subscriptions=(), wallets=(wallet("100000"),))
        self.now_ms = NOW
        self.ended: list[Subscription] = []
        self.active: dict[str, tuple[str, str, int, tuple[str, ...], str]] = {}
        self.count = 0
        self.served = Decimal(0)

    def begin(self, name: str) -> None:
        self.count += 1
        if name in self.active:
            self.end(name)
        metrics = tuple(self.random.sample(sorted(METRICS), self.random.randint(1, 3)))
        interval = self.random.choice(sorted(LENGTHS_MS))
        self.active[name] = (f"sub-{self.count}", interval, self.now_ms + self.random.randrange(1000), metrics, name)

    def end(self, name: str) -> None:
        lago_id, *_ = self.active.pop(name)
        self.ended.append(
            subscription(lago_id=lago_id, external_id=name, status="terminated", terminated_at_ms=self.now_ms,
                         started_at_ms=0, plan=None, period_start_ms=None, period_end_ms=None)
        )  # fmt: skip

    def subscriptions(self) -> tuple[Subscription, ...]:
        found = []
        for lago_id, interval, started_ms, metrics, name in self.active.values():
            length = LENGTHS_MS[interval]
            first_ms = (started_ms // length + 1) * length
            start_ms = started_ms if self.now_ms < first_ms else self.now_ms // length * length
            end_ms = first_ms if self.now_ms < first_ms else start_ms + length
            of = plan(*(standard(str(METRICS[each]), each) for each in metrics), code=lago_id, interval=interval)
            found.append(
                subscription(of, lago_id, external_id=name, started_at_ms=started_ms, created_at_ms=started_ms,
                             period_start_ms=start_ms, period_end_ms=end_ms)
            )  # fmt: skip
        return (*found, *self.ended)

    def load(self) -> None:
        self.scenario.now_ms = max(self.now_ms, self.scenario.now_ms)
        self.scenario.lago(subscriptions=self.subscriptions())
        if self.scenario.state.version or self.active:
            self.scenario.load()
        self.now_ms = self.scenario.now_ms

    def use(self) -> None:
        state = self.scenario.state.rolled_over(self.now_ms)
        served = sorted({metric for each in state.subscriptions for metric in each.prices})
        if served:
            metric, units = self.random.choice(served), self.random.randint(1, 9)
            self.scenario.now_ms = max(self.now_ms, self.scenario.now_ms)
            self.scenario.use(units, metric)
            self.served += METRICS[metric] * units


@pytest.mark.parametrize("seed", range(60))
def test_whatever_begins_and_ends_all_that_was_served_is_owed_and_pushed_to_one_subscription(seed: int) -> None:
    customer = Customer(Random(seed))
    random = customer.random
    customer.begin("one")
    for _ in range(40):
        name = random.choice(["one", "two", "three"])
        draw = random.random()
        if draw < 0.15:
            customer.begin(name)
        elif draw < 0.25 and name in customer.active:
            customer.end(name)
        customer.now_ms += random.choice([0, 1_000, HOUR_MS, 3 * DAY_MS, 20 * DAY_MS])
        for _ in range(random.randrange(4)):
            customer.use()
        if random.random() < 0.7:
            customer.load()
            if not customer.scenario.state.version:
                continue
            assert customer.scenario.available == Decimal(100_000) - customer.served
            bound: dict[tuple[int, str], str] = {}
            for link in customer.scenario.saved.links.values():
                for metric in link.metrics:
                    other = bound.setdefault((link.ledger_start_ms, metric), link.subscription_id)
                    assert other == link.subscription_id, f"{metric} from {link.ledger_start_ms} on is pushed to two"


def test_first_periods_that_begin_when_each_subscription_began_are_both_served() -> None:
    """A running Lago: two subscriptions of one second had first periods a second apart until the end of the month."""
    began = AUGUST + 471_322
    first = subscription(started_at_ms=began, created_at_ms=began, period_start_ms=began // 1000 * 1000)
    second = replace(
        yearly("payments"), plan=plan(standard("2", "payments"), code="d_b"), started_at_ms=began + 902,
        period_start_ms=(began + 902) // 1000 * 1000, period_end_ms=SEPTEMBER,
    )  # fmt: skip
    scenario = Scenario().lago(subscriptions=(second, first))

    scenario.load()

    assert [(each.name, set(each.prices), each.end_ms) for each in scenario.state.subscriptions] == [
        ("", {"api_calls"}, SEPTEMBER),
        ("ext-2", {"payments"}, SEPTEMBER),
    ]
    assert [each.lago_from_ms for each in links(scenario.saved, "")] == [began]
    assert [each.lago_from_ms for each in links(scenario.saved, "ext-2")] == [began + 902]
    assert scenario.desired().alerts == ()
