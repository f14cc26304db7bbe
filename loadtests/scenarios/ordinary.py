"""Scenarios without trouble: steady traffic, the end of a credit, top-ups."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Final

from loadtests.scenarios import seed, stack
from loadtests.scenarios.checks import Check, equals, passes, unchecked
from loadtests.scenarios.options import ACCOUNTS_PATH, Options
from loadtests.scenarios.plan import Call, Plan
from loadtests.scenarios.reconciliation import debited
from loadtests.scenarios.scenario import Evidence, Scenario, Setting, Trouble
from loadtests.scenarios.stack import Demo
from loadtests.scenarios.target import CannotRun, Secret, Target

API: Final = "/open-banking/v3.1"
PRICE: Final = Decimal("0.10")
"""Of a call of ``api_calls`` on the demo's prepaid plan."""

PAID: Final = 3_000
CONSENT: Final = json.dumps({
    "Data": {
        "Initiation": {
            "InstructionIdentification": "LOAD", "EndToEndIdentification": "LOAD",
            "InstructedAmount": {"Amount": "1.00", "Currency": "GBP"},
            "CreditorAccount": {
                "SchemeName": "UK.OBIE.SortCodeAccountNumber", "Identification": "08080021325698", "Name": "ACME Inc",
            },
        }
    },
    "Risk": {},
})  # fmt: skip

MIXED: Final = (
    Call(f"{API}/aisp/accounts", weight=4),
    Call(f"{API}/aisp/accounts/acc-001", weight=2),
    Call(f"{API}/aisp/accounts/acc-002/balances", weight=2),
    Call(f"{API}/aisp/accounts/acc-001/transactions", weight=2),
    Call(f"{API}/pisp/domestic-payment-consents", "POST", CONSENT, weight=1, twice=True),
)


def target_of(demo: Demo) -> Target:
    """The demo as it is, without callers."""
    return Target(
        urls=(demo.url("proxy"),), callers=(), calls=(Call(ACCOUNTS_PATH),), admin=demo.url("admin"),
        valkey=Secret(demo.url("valkey")), openmeter=demo.url("openmeter"), meters=("api_calls", "payments"),
        lago=demo.url("lago"), lago_key=Secret(demo.url("lago_api_key")), about=("sidecar demo, started for this run",),
    )  # fmt: skip


def lago_of(target: Target) -> seed.Lago:
    return seed.Lago(target.lago, target.lago_key)


def crowd(demo: Demo, count: int = 4) -> Target:
    """The demo with prepaid accounts that have plenty of credit and no rate limit."""
    target = target_of(demo)
    customers = [seed.paying(f"tpp-load-{number}") for number in range(count)]
    return replace(target, callers=seed.make(lago_of(target), target.admin, customers))


def plan_of(target: Target, options: Options) -> Plan:
    return Plan("calls", target.urls, target.callers, target.calls, options.users, options.seconds)


def stage_steady(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    target = target_of(stack.demo(stack_, directory))
    customers = [
        *(seed.paying(f"tpp-prepaid-{number}") for number in range(3)),
        seed.customer("tpp-overage-0", "api_pro", metadata=(("quota_mode", "overage"),)),
        *(seed.customer(f"tpp-postpaid-{number}", "api_postpaid", metadata=seed.UNLIMITED) for number in range(2)),
    ]
    about = (*target.about, "accounts made in its Lago: 3 prepaid, 1 overage, 2 postpaid, none with a rate limit")
    target = replace(target, calls=MIXED, callers=seed.make(lago_of(target), target.admin, customers), about=about)
    return steady(target, options)


def steady(target: Target, options: Options) -> Setting:
    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        odd = answers.total - answers.statuses("2")
        return (equals("every answer has a status of 2xx", "0 others", f"{odd:,} others"),)

    return Setting(target, plan_of(target, options), judge=judge)


def stage_herd(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    demo = stack.demo(stack_, directory)
    (second,) = stack.gateways(stack_, demo, directory, 1)
    target = target_of(demo)
    paid = PAID if options.paid is None else options.paid
    made = seed.make(lago_of(target), target.admin, [seed.paying("tpp-herd", str(PRICE * paid))])
    about = (*target.about, "a second gateway beside it", f"an account made in its Lago, with {paid:,} calls paid for")
    urls = (*target.urls, second.url)
    return herd(replace(target, urls=urls, callers=made, about=about), replace(options, paid=paid))


def herd(target: Target, options: Options) -> Setting:
    if len(target.callers) > 1:
        raise CannotRun("herd is for one account: give one key")
    plan = replace(plan_of(target, options), kind="herd", pause_s=(0.0, 0.0))

    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        left = evidence.first_left
        paid = options.paid if options.paid is not None else None if left is None else left + 1
        refused = answers.by_status.get("402", 0)
        odd = {status: count for status, count in answers.by_status.items() if status[0] != "2" and status != "402"}
        own = [
            unchecked("exactly the paid calls passed", "?", "--paid, or a gateway that says how many calls are left")
            if paid is None
            else equals("exactly the paid calls passed", paid, answers.statuses("2")),
            passes("the herd went on beyond the end of the credit", refused > 0, "1 or more refused", f"{refused:,}"),
            equals("all other answers are 402", "none", ", ".join(f"{n} times {s}" for s, n in odd.items()) or "none"),
        ]
        return (*own, _balance(evidence))

    return Setting(target, plan, judge=judge)


def _balance(evidence: Evidence) -> Check:
    """Nothing is left, but where the last price was higher than the rest."""
    name, after = "the balance is zero", evidence.run_counts.after.ledger
    balances = [account.available for account in (after or {}).values() if account.available is not None]
    if not balances:
        return unchecked(name, "0", "--admin")
    return equals(name, "0", f"{balances[0].normalize():f}")


def stage_topup(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    target = target_of(stack.demo(stack_, directory))
    customers = [seed.paying(f"tpp-topup-{number}", "2.00") for number in range(3)]
    callers = seed.make(lago_of(target), target.admin, customers)
    about = (*target.about, "3 accounts made in its Lago, with credit for 20 calls each")
    return topup(replace(target, callers=callers, about=about), options)


def topup(target: Target, options: Options) -> Setting:
    if not (target.lago and target.lago_key.value):
        raise CannotRun("topup needs --lago and --lago-key-file")
    lago, granted = lago_of(target), {account: Decimal(0) for account in target.accounts}

    def pay() -> tuple[Check, ...]:
        for account in target.accounts:
            granted[account] += lago.top_up(account, options.credits)
        return ()

    def judge(evidence: Evidence) -> tuple[Check, ...]:
        before, after = evidence.run_counts.before.ledger, evidence.run_counts.after.ledger
        name, answers = "spent + left = credit + top-ups, account by account", evidence.run_counts.answers
        refused = answers.by_status.get("402", 0)
        out = passes("accounts ran out of credit in between", refused > 0, "1 or more 402", f"{refused:,}")
        if before is None or after is None or any(account.available is None for account in after.values()):
            return (unchecked(name, "equal", "--admin"), out)
        spent = debited(before, after)
        price = evidence.price
        if price is None:
            return (unchecked(name, "equal", "answers that say what a call costs"), out)
        wrong = []
        for account, now in after.items():
            had = (before[account].available or Decimal(0)) + granted[account]
            has = spent[account] * price + (now.available or Decimal(0))
            if had != has:
                wrong.append(f"{account}: {had} ≠ {has}")
        equal = f"equal, {sum(granted.values())} topped up"
        return (equals(name, equal, "; ".join(wrong) or equal), out)

    troubles = tuple(Trouble(at, "top-up", pay) for at in (0.15, 0.35, 0.55, 0.75))
    return Setting(target, plan_of(target, options), troubles, judge)


SCENARIOS: Final = (
    Scenario(
        "steady", "Mixed traffic of several accounts and endpoints; payments are sent twice under one idempotency key.",
        "Every answer is 2xx; answers, debits, usage events and OpenMeter's meters are equal, account by account.",
        stage_steady, steady,
    ),
    Scenario(
        "herd", "All clients call at once, through two gateways, on one account whose credit ends on the way.",
        "Exactly the paid calls pass, every other answer is 402, the balance is zero.",
        stage_herd, herd,
    ),
    Scenario(
        "topup", "Accounts run out of credit under load and are topped up in Lago, four times.",
        "What was spent and what is left is what there was and what was topped up, to the penny.",
        stage_topup, topup,
    ),
)  # fmt: skip
