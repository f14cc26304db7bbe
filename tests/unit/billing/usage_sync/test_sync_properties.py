"""Whatever happens in whatever order, Lago bills what OpenMeter has counted, once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Literal

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidecar.billing.lago.errors import LagoUnavailable
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.sync_report import SyncReport
from tests.unit.billing.usage_sync.kit import DAY, HOUR, T0, Bank, Crash, link, unavailable

ACCOUNTS = ("tpp-1", "tpp-2", "tpp-3")
PERIOD_S = 3 * DAY


@dataclass(frozen=True, slots=True)
class Use:
    account: int
    back_s: int
    units: int


@dataclass(frozen=True, slots=True)
class Pass:
    seconds: int


@dataclass(frozen=True, slots=True)
class Run:
    flush: bool
    rescan: bool
    fails_at: int | None
    how: Literal["crash", "outage"]


@dataclass(frozen=True, slots=True)
class Cut:
    """An upgrade; Lago's own cut came so much earlier."""

    account: int
    late_ms: int


@dataclass(frozen=True, slots=True)
class Finalise:
    account: int


uses = st.builds(
    Use,
    account=st.integers(0, 2),
    back_s=st.one_of(st.integers(0, 120), st.integers(0, 2 * HOUR), st.integers(0, 2 * DAY)),
    units=st.integers(1, 50),
)
passes = st.builds(
    Pass, st.one_of(st.integers(1, 90), st.integers(1, 2 * HOUR), st.sampled_from([HOUR, 5 * HOUR, DAY]))
)
runs = st.builds(
    Run,
    flush=st.booleans(),
    rescan=st.booleans(),
    fails_at=st.one_of(st.none(), st.integers(0, 25)),
    how=st.sampled_from(["crash", "outage"]),
)
cuts = st.builds(Cut, account=st.integers(0, 2), late_ms=st.one_of(st.integers(0, 1500), st.integers(0, HOUR * 1000)))
finalisings = st.builds(Finalise, account=st.integers(0, 2))


@dataclass(slots=True)
class Simulation:
    """A bank with three accounts, their periods, and a clock."""

    bank: Bank
    now_s: int = T0 + 17
    links: dict[str, list[PeriodLink]] = field(default_factory=dict)
    invoiced: dict[tuple[str, int], int] = field(default_factory=dict)
    has_cut: bool = False

    def __post_init__(self) -> None:
        for n, account in enumerate(ACCOUNTS):
            # Periods that start on the hour, and in the zone of Nepal.
            start = T0 + (900 if n == 2 else 0)
            self.links[account] = [link(start, start + PERIOD_S, sub=f"{account}-s0", external=account)]

    def accounts(self) -> list[SyncAccount]:
        return [SyncAccount(account, tuple(links)) for account, links in self.links.items()]

    def advance(self, seconds: int) -> None:
        self.now_s += seconds
        for links in self.links.values():
            while links[-1].end_s <= self.now_s:
                last = links[-1]
                links[-1] = replace(last, is_current=False)
                number = len(links)
                links.append(
                    link(
                        last.end_s,
                        last.end_s + PERIOD_S,
                        sub=last.subscription_id if number % 2 else f"{last.external_subscription_id}-s{number}",
                        external=last.external_subscription_id,
                        lago_from_ms=last.lago_to_ms,
                    )
                )

    def cut(self, account: str, late_ms: int) -> None:
        last = self.links[account][-1]
        lago_ms = max(self.now_s * 1000 - late_ms, last.lago_from_ms + 1000, last.ledger_start_ms + 1)
        if not last.start_s < self.now_s < last.end_s or lago_ms > self.now_s * 1000:
            return
        self.links[account][-1] = replace(last, ledger_end_ms=self.now_s * 1000, lago_to_ms=lago_ms, is_current=False)
        self.has_cut = True
        number = len(self.links[account])
        self.links[account].append(
            link(self.now_s, self.now_s + PERIOD_S, sub=f"{account}-s{number}", external=account, lago_from_ms=lago_ms)
        )

    def finalise(self, account: str) -> None:
        """The oldest open period that is over."""
        for n, each in enumerate(self.links[account]):
            if not each.is_final and not each.is_current:
                self.links[account][n] = replace(each, is_final=True)
                self.invoiced[account, each.start_s] = self.bank.lago.units(each)
                return

    async def run(self, how: Run) -> None:
        self.bank.fate.at = how.fails_at
        self.bank.fate.error = Crash() if how.how == "crash" else unavailable()
        report: SyncReport | None
        try:
            report = await self.bank.round(self.now_s, accounts=self.accounts(), flush=how.flush, rescan=how.rescan)
        except (Crash, LagoUnavailable):
            report = None
        if how.fails_at is None:
            assert report is not None
            assert report.stopped is None
            assert report.counts.accounts_failed == 0
        self.bank.fate.at = None
        self.check_always()

    def check_always(self) -> None:
        for transaction_id, payloads in self.bank.lago.payloads.items():
            assert all(each == payloads[0] for each in payloads), f"{transaction_id} was sent with two payloads"
        for account, links in self.links.items():
            used = self.bank.meter.total(account, 0, self.now_s + 1)
            assert sum(self.bank.lago.units(each) for each in links) <= used, f"{account} pays too much"

    async def step(self, action: Use | Pass | Run | Cut | Finalise) -> None:
        match action:
            case Use(account, back_s, units):
                at_s = max(self.now_s - back_s, self.links[ACCOUNTS[account]][0].start_s)
                if at_s <= self.now_s:
                    self.bank.meter.use(ACCOUNTS[account], at_s, units)
            case Pass(seconds):
                self.advance(seconds)
            case Cut(account, late_ms):
                self.cut(ACCOUNTS[account], late_ms)
            case Finalise(account):
                self.finalise(ACCOUNTS[account])
            case Run():
                await self.run(action)


async def play(simulation: Simulation, actions: list[Use | Pass | Run | Cut | Finalise]) -> None:
    for action in actions:
        await simulation.step(action)
    simulation.advance(60)
    for _ in range(3):
        await simulation.run(Run(flush=True, rescan=True, fails_at=None, how="crash"))
        simulation.now_s += 1
    event(f"{len(simulation.bank.lago.events)} events" if len(simulation.bank.lago.events) < 9 else "many events")


def world_with(window_s: int, late_usage: str = "report", batch: int = 100) -> Simulation:
    return Simulation(
        Bank(
            SyncSettings.model_validate(
                {"window_s": window_s, "rescan_s": 7_200, "late_usage": late_usage, "batch_events_max": batch}
            )
        )
    )


@settings(max_examples=100)
@given(
    st.lists(st.one_of(uses, uses, passes, runs, cuts), max_size=30),
    st.sampled_from([60, 900, 3600]),
    st.sampled_from([2, 100]),
)
def test_each_period_is_billed_what_openmeter_has_counted_in_it(
    actions: list[Use | Pass | Run | Cut | Finalise], window_s: int, batch: int
) -> None:
    simulation = world_with(window_s, batch=batch)
    asyncio.run(play(simulation, actions))
    for account, links in simulation.links.items():
        state = simulation.bank.state(account)
        assert not state.frozen_events
        assert sum(map(simulation.bank.lago.units, links)) == simulation.bank.meter.total(
            account, 0, simulation.now_s + 1
        )
        for each in links:
            used = simulation.bank.meter.total(account, each.start_s, each.end_s)
            pushed_usage = state.pushed_usages.get((each.start_s, "api_calls"))
            # What Lago's cut has moved to the next subscription before it was noticed.
            moved = pushed_usage.carried_in - pushed_usage.carried_out if pushed_usage else 0
            assert simulation.bank.lago.units(each) == used + moved
            if not simulation.has_cut:
                assert moved == 0


@settings(max_examples=80)
@given(st.lists(st.one_of(uses, uses, passes, runs, cuts, finalisings), max_size=30), st.sampled_from([60, 3600]))
def test_a_final_invoice_is_left_alone_and_what_it_lacks_is_known_as_late(
    actions: list[Use | Pass | Run | Cut | Finalise], window_s: int
) -> None:
    simulation = world_with(window_s)
    asyncio.run(play(simulation, actions))
    for account, links in simulation.links.items():
        pushed_usages = simulation.bank.state(account).pushed_usages
        for each in links:
            used = simulation.bank.meter.total(account, each.start_s, each.end_s)
            billed = simulation.bank.lago.units(each)
            pushed_usage = pushed_usages.get((each.start_s, "api_calls"))
            moved = pushed_usage.carried_in - pushed_usage.carried_out if pushed_usage else 0
            if not each.is_final:
                assert billed == used + moved
                continue
            assert billed == simulation.invoiced[account, each.start_s], "units were pushed that no invoice takes"
            if each.end_s + 7_200 >= simulation.now_s - 3:  # later, nobody looks any more
                assert billed + (pushed_usage.late if pushed_usage else 0) == used + moved


@settings(max_examples=80)
@given(st.lists(st.one_of(uses, uses, passes, runs, cuts, finalisings), max_size=30), st.sampled_from([60, 3600]))
def test_late_usage_that_is_carried_is_billed_once_in_a_later_period(
    actions: list[Use | Pass | Run | Cut | Finalise], window_s: int
) -> None:
    simulation = world_with(window_s, late_usage="carry")
    asyncio.run(play(simulation, actions))
    for account, links in simulation.links.items():
        pushed_usages = simulation.bank.state(account).pushed_usages
        for each in links:
            used = simulation.bank.meter.total(account, each.start_s, each.end_s)
            billed = simulation.bank.lago.units(each)
            pushed_usage = pushed_usages.get((each.start_s, "api_calls"))
            carried_in, carried_out = (pushed_usage.carried_in, pushed_usage.carried_out) if pushed_usage else (0, 0)
            if each.is_final:
                assert billed == simulation.invoiced[account, each.start_s]
            if not each.is_final:
                assert billed == used + carried_in - carried_out
            elif each.end_s + 7_200 >= simulation.now_s - 3:
                late = pushed_usage.late if pushed_usage else 0
                assert billed + carried_out + late == used + carried_in
                assert late == 0 or (pushed_usage is not None and not pushed_usage.was_open)
