"""What a scenario asserts, and how it came out. No I/O: figures in, verdicts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum

from loadtests.scenarios.tally import NO_ANSWER, NOT_SENT, Claim, Entry

SHOWN_MAX = 3
"""Entries that differ are named up to so many."""


class Verdict(Enum):
    HELD = "held"
    BROKEN = "broken"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """An assertion, its verdict, and the figures that led to it, or why it could not be made."""

    claim: str
    verdict: Verdict
    figures: str


def check(claim: str, holds: bool, figures: str) -> Check:
    return Check(claim, Verdict.HELD if holds else Verdict.BROKEN, figures)


def unchecked(claim: str, why: str) -> Check:
    return Check(claim, Verdict.UNCHECKED, why)


@dataclass(frozen=True, slots=True)
class Accounts:
    """Ledger and meters after the load, less what they had before it.

    ``settled`` and ``metered`` are units by entry, ``held`` those still reserved, ``available`` money by account (None
    for no limit). What could not be read is None, and ``why_no_ledger`` or ``why_no_meters`` says why.
    """

    settled: Mapping[Entry, int] | None = None
    metered: Mapping[Entry, int] | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    available: Mapping[str, Decimal | None] = field(default_factory=dict)
    why_no_ledger: str = ""
    why_no_meters: str = ""


def nothing_lost_nothing_double(claims: Mapping[Entry, Claim], accounts: Accounts) -> list[Check]:
    """What clients were told, what the ledger charged and what OpenMeter counted are one and the same."""
    return [
        _ledger_has_what_was_answered(claims, accounts),
        _meters_have_what_the_ledger_has(claims, accounts),
        _nothing_is_held(accounts),
    ]


def _ledger_has_what_was_answered(claims: Mapping[Entry, Claim], accounts: Accounts) -> Check:
    claim = "The ledger has charged every call that was answered as charged, and no other"
    if accounts.settled is None:
        return unchecked(claim, accounts.why_no_ledger)
    if nameless := sum(each.charged for entry, each in claims.items() if not entry.account):
        return unchecked(claim, f"{nameless} charged calls are of keys whose account was not named (--account)")
    differing = _outside(claims, accounts.settled)
    answered, doubtful = _totals(claims)
    total = sum(accounts.settled.values())
    figures = f"answered {answered:,}, in doubt {doubtful:,}, charged {total:,}, in {_accounts_in(claims)}"
    return check(claim, not differing, _named(figures, differing))


def _meters_have_what_the_ledger_has(claims: Mapping[Entry, Claim], accounts: Accounts) -> Check:
    claim = "OpenMeter has counted exactly what the ledger has charged"
    metered, settled = accounts.metered, accounts.settled
    if metered is None:
        return unchecked(claim, accounts.why_no_meters)
    if settled is None:
        if any(not entry.account for entry in claims):
            return unchecked(claim, "the accounts of the keys were not named (--account)")
        # Without the ledger OpenMeter is held against what the clients were told.
        differing = _outside(claims, metered)
        answered, doubtful = _totals(claims)
        figures = f"answered {answered:,}, in doubt {doubtful:,}, counted {sum(metered.values()):,}; no ledger to ask"
        return check("OpenMeter has counted every charged call, and no other", not differing, _named(figures, differing))
    differing = [
        f"{entry.account} {entry.metric}: ledger {settled.get(entry, 0):,}, OpenMeter {metered.get(entry, 0):,}"
        for entry in sorted({*settled, *metered})
        if settled.get(entry, 0) != metered.get(entry, 0)
    ]
    figures = f"charged {sum(settled.values()):,}, counted {sum(metered.values()):,}"
    return check(claim, not differing, _named(figures, differing))


def _nothing_is_held(accounts: Accounts) -> Check:
    claim = "No hold is left behind"
    if accounts.settled is None:
        return unchecked(claim, accounts.why_no_ledger)
    left = {account: units for account, units in accounts.held.items() if units}
    return check(claim, not left, _named(f"{sum(left.values())} units held", [f"{a}: {n}" for a, n in left.items()]))


def _outside(claims: Mapping[Entry, Claim], found: Mapping[Entry, int]) -> list[str]:
    """Entries of which more or less was found than the clients' word allows."""
    differing = []
    for entry in sorted({*claims, *found}):
        claim, units = claims.get(entry, Claim()), found.get(entry, 0)
        if not claim.charged <= units <= claim.charged + claim.doubtful:
            doubt = f" (in doubt {claim.doubtful:,})" if claim.doubtful else ""
            differing.append(f"{entry.account} {entry.metric}: answered {claim.charged:,}{doubt}, found {units:,}")
    return differing


def _totals(claims: Mapping[Entry, Claim]) -> tuple[int, int]:
    return sum(each.charged for each in claims.values()), sum(each.doubtful for each in claims.values())


def _accounts_in(claims: Mapping[Entry, Claim]) -> str:
    count = len({entry.account for entry in claims})
    return f"{count} account{'' if count == 1 else 's'}"


def _named(figures: str, differing: list[str]) -> str:
    if not differing:
        return figures
    more = f"; and {len(differing) - SHOWN_MAX} more" if len(differing) > SHOWN_MAX else ""
    return f"{figures}; {'; '.join(differing[:SHOWN_MAX])}{more}"


def exactly(claim: str, expected: int, found: int, what: str = "") -> Check:
    return check(claim, found == expected, f"{found:,}{f' {what}' if what else ''}, expected {expected:,}")


def at_most(claim: str, bound: float, found: float, unit: str, *, detail: str = "") -> Check:
    tail = f"; {detail}" if detail else ""
    return check(claim, found <= bound, f"{found:,.4g} {unit}, at most {bound:,.4g}{tail}")


def money_left(claim: str, account: str, expected: Decimal, accounts: Accounts) -> Check:
    """What the account may still spend, as the ledger has it."""
    if accounts.settled is None:
        return unchecked(claim, accounts.why_no_ledger)
    found = accounts.available.get(account)
    return check(claim, found == expected, f"{account}: {found} available, expected {expected}")


def only_these(claim: str, seen: Counter[int], allowed: Collection[int]) -> Check:
    """No other statuses than these were seen."""
    other = {status: count for status, count in seen.items() if count and status not in allowed}
    return check(claim, not other, f"{statuses_text(seen)}" + (f"; not allowed: {statuses_text(other)}" if other else ""))


def statuses_text(counts: Mapping[int, int]) -> str:
    words = {NO_ANSWER: "no answer", NOT_SENT: "not connected"}
    ordered = sorted(counts.items(), key=lambda item: (item[0] <= 0, item[0]))
    return ", ".join(f"{words.get(status, status)}: {count:,}" for status, count in ordered if count) or "nothing"


def overall(checks: Iterable[Check]) -> Verdict:
    """Broken if one is broken; not checked if nothing was."""
    verdicts = {each.verdict for each in checks}
    if Verdict.BROKEN in verdicts:
        return Verdict.BROKEN
    return Verdict.HELD if Verdict.HELD in verdicts else Verdict.UNCHECKED
