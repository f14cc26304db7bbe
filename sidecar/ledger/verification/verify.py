"""Verifies a ledger: recomputes its rules from what is stored, while it is used (docs/ledger.md, "Verification").

Nothing is stopped for it. An account is read at one instant, whole, so what it says of itself must agree. What spans
accounts moves: the sum of an epoch's shares is compared only where the epoch's owner did nothing during the pass, and
what differs is looked at again before it is named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sidecar.ledger.account_pages import account_pages
from sidecar.ledger.keys import PARTITIONS_MAX, Keys
from sidecar.ledger.verification.account_checks import AccountFindings, check_account
from sidecar.ledger.verification.account_reading import read_accounts
from sidecar.ledger.verification.api_key_checks import check_api_keys, check_owned_keys
from sidecar.ledger.verification.charged_units import ChargedUnits
from sidecar.ledger.verification.key_scan import ScannedKeys, check_keys
from sidecar.ledger.verification.owners import Owner, Owners, read_owners
from sidecar.ledger.verification.pace import Pace
from sidecar.ledger.verification.partition_checks import check_partitions
from sidecar.ledger.verification.verify_report import Check, Difference, Findings, OrphanedShares, VerifyReport
from sidecar.valkey.calls import call_each, raise_first, script_call
from sidecar.valkey.topology import Client

LOOKS: Final = 3
"""How often what moves is looked at before it is named, or given up."""

INDEX_PAGE: Final = 500
NAMED_MAX: Final = 20
"""Accounts that are named with an epoch."""

ReadCharged = Callable[[int], Awaitable[ChargedUnits | None]]
"""Reads what the events say; takes now, in ms. None: it cannot be told."""

_REPAIR: Final = b"""
-- Units of an epoch that belongs to nobody become those of a departed process, which the reaper gives back.
-- KEYS [1] meta hash   ARGV [1] field [2] units
-- reply 1, or 0 where somebody has noted the epoch meanwhile
return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
"""


@dataclass(slots=True)
class _Shares:
    """Units by epoch, and the first accounts that have some."""

    units: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    accounts: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, account: str, shares: Iterable[tuple[int, int]]) -> None:
        for epoch, units in shares:
            self.units[epoch] += units
            named = self.accounts[epoch]
            if len(named) < NAMED_MAX and account not in named:
                named.append(account)


class _Pass:
    """One verification."""

    def __init__(self, client: Client, keys: Keys, pace: Pace, looks: int) -> None:
        self.client = client
        self.keys = keys
        self.pace = pace
        self.looks = looks
        self.findings = Findings()
        self.accounts = 0
        self.again: dict[str, list[Difference]] = {}

    async def run(self, read_charged: ReadCharged | None) -> VerifyReport:
        clocks = await check_partitions(self.client, self.keys, self.findings)
        charged = await read_charged(clocks.now_ms) if read_charged is not None else None
        scanned = await check_keys(self.client, self.keys, self.findings, self.pace)
        before = await read_owners(self.client, self.keys, scanned.instances, self.pace)
        shares = await self._accounts(scanned, charged)
        after = await read_owners(self.client, self.keys, scanned.instances, self.pace)
        if self.again and read_charged is not None:
            await self._events_again(await read_charged(clocks.now_ms))
        # What is only so for a moment is not so both times.
        lasting = {(each.check, each.place, each.what) for each in after.differences}
        self.findings.extend([d for d in before.differences if (d.check, d.place, d.what) in lasting])
        epochs, moving, orphans = await self._epochs(before, shares, after, scanned)
        await self._api_keys(scanned)
        findings = self.findings
        return VerifyReport(
            accounts=self.accounts,
            epochs=epochs,
            epochs_moving=moving,
            first_hour=charged.hours.start if charged is not None else 0,
            hours=len(charged.hours) if charged is not None else 0,
            differences=tuple(findings.differences),
            more=findings.more,
            orphans=orphans,
            notes=findings.notes,
        )

    # Accounts

    async def _accounts(self, scanned: ScannedKeys, charged: ChargedUnits | None) -> _Shares:
        shares = _Shares()
        unseen = set(charged.units) if charged is not None else set()
        async for _, accounts in account_pages(self.client, self.keys, accounts_max=INDEX_PAGE):
            unseen.difference_update(accounts)
            owned: list[tuple[str, str]] = []
            async for stored in read_accounts(self.client, self.keys, accounts, self.pace):
                for each in stored:
                    self.accounts += 1
                    found = check_account(each, charged)
                    self._take(each.id, found, shares)
                    owned += [(each.id, digest) for digest in found.api_keys]
                    if each.state is None and not each.fields and not each.error:
                        await self._missing(each.id)
            await self._owned(owned)
        unlisted = {account for some in scanned.unlisted.values() for account in some} | unseen
        by_partition: defaultdict[int, list[str]] = defaultdict(list)
        for account in sorted(unlisted):
            by_partition[self.keys.partition(account)].append(account)
        for accounts in by_partition.values():
            async for stored in read_accounts(self.client, self.keys, accounts, self.pace):
                for each in stored:
                    self._unlisted(each.id, check_account(each, charged), shares, charged)
        return shares

    def _take(self, account: str, found: AccountFindings, shares: _Shares) -> None:
        moving = [each for each in found.differences if each.check is Check.EVENTS]
        if moving:
            self.again[account] = moving
        self.findings.extend([each for each in found.differences if each.check is not Check.EVENTS])
        for name in found.unknown_fields:
            self.findings.note(f"a field of an account that this release does not know: {name[:60]}")
        shares.add(account, found.shares)

    async def _missing(self, account: str) -> None:
        index = self.keys.accounts(self.keys.partition(account))
        if await self.client.zscore(index, account) is not None:  # an account may have been deleted since
            place = f"account {account}"
            self.findings.add(Check.ACCOUNTS, place, "the index has it, and it has no keys", "an account", "nothing")

    def _unlisted(self, account: str, found: AccountFindings, shares: _Shares, charged: ChargedUnits | None) -> None:
        self._take(account, found, shares)
        if found.version:
            place = f"account {account}"
            self.findings.add(
                Check.ACCOUNTS, place, "it is not in the index", "in the index", f"version {found.version}"
            )
        elif found.settled:
            self.findings.note(f"account {account} was never loaded, and has {found.settled} settled units")

    async def _events_again(self, charged: ChargedUnits | None) -> None:
        """An entry may have gone from one stream to another while they were read."""
        if charged is None:
            return
        for account, _ in sorted(self.again.items()):
            async for stored in read_accounts(self.client, self.keys, [account], self.pace):
                for each in stored:
                    found = check_account(each, charged)
                    self.findings.extend([d for d in found.differences if d.check is Check.EVENTS])

    # API keys

    async def _owned(self, owned: list[tuple[str, str]]) -> None:
        if owned and await check_owned_keys(self.client, self.keys, owned):
            # One that is taken away leaves the account first.
            accounts = sorted({account for account, _ in owned})
            still: list[tuple[str, str]] = []
            for account in accounts:
                async for stored in read_accounts(self.client, self.keys, [account], self.pace):
                    still += [(each.id, digest) for each in stored for digest in check_account(each).api_keys]
            self.findings.extend(await check_owned_keys(self.client, self.keys, still))

    async def _api_keys(self, scanned: ScannedKeys) -> None:
        found = await check_api_keys(self.client, self.keys, scanned.api_keys, self.pace)
        if found:
            # A load gives a key to an account before the account names it.
            again = await check_api_keys(self.client, self.keys, scanned.api_keys, self.pace)
            self.findings.extend([each for each in found if each in again])

    # Shares

    async def _epochs(
        self, before: Owners, shares: _Shares, after: Owners, scanned: ScannedKeys
    ) -> tuple[int, int, tuple[OrphanedShares, ...]]:
        settled: dict[int, Difference | None] = {}
        orphans: list[OrphanedShares] = []
        for look in range(self.looks):
            if look:
                before = after
                shares = await self._shares(scanned)
                after = await read_owners(self.client, self.keys, scanned.instances, self.pace)
            epochs = shares.units.keys() | before.by_epoch.keys() | after.by_epoch.keys()
            for epoch in epochs - settled.keys():
                was, is_now, units = before.by_epoch.get(epoch), after.by_epoch.get(epoch), shares.units.get(epoch, 0)
                if was is None and is_now is None:
                    # No epoch is given twice: one that is nobody's now stays so. But it may have been given back.
                    orphan = await self._orphan(epoch, units, shares.accounts[epoch])
                    settled[epoch] = None
                    orphans += [orphan] if orphan is not None else []
                elif was is not None and was == is_now:
                    settled[epoch] = _compared(epoch, was, units, shares.accounts.get(epoch, []))
            if epochs <= settled.keys():
                break
        self.findings.extend([each for _, each in sorted(settled.items()) if each is not None])
        for orphan in orphans:
            self.findings.add(
                Check.ORPHANED_SHARES, f"epoch {orphan.epoch}", f"it is nobody's; held of {', '.join(orphan.accounts)}",
                0, orphan.units,
            )  # fmt: skip
        return len(settled), len((after.by_epoch.keys() | shares.units.keys()) - settled.keys()), tuple(orphans)

    async def _shares(self, scanned: ScannedKeys) -> _Shares:
        shares = _Shares()
        async for _, accounts in account_pages(self.client, self.keys, accounts_max=INDEX_PAGE):
            async for stored in read_accounts(self.client, self.keys, accounts, self.pace):
                for each in stored:
                    shares.add(each.id, check_account(each).shares)
        for accounts in map(sorted, scanned.unlisted.values()):
            async for stored in read_accounts(self.client, self.keys, accounts, self.pace):
                for each in stored:
                    shares.add(each.id, check_account(each).shares)
        return shares

    async def _orphan(self, epoch: int, units: int, accounts: list[str]) -> OrphanedShares | None:
        left = []
        for account in accounts:
            async for stored in read_accounts(self.client, self.keys, [account], self.pace):
                for each in stored:
                    left += [account] if any(epoch == other for other, _ in check_account(each).shares) else []
        return OrphanedShares(epoch, units, tuple(left)) if left else None


def _compared(epoch: int, owner: Owner, units: int, accounts: list[str]) -> Difference | None:
    if owner.units == units:
        return None
    what = f"its shares are not what it holds; accounts: {', '.join(accounts) or 'none'}"
    return Difference(Check.EPOCHS, f"epoch {epoch}, {owner.place}", what, str(owner.units), str(units))


async def verify_ledger(
    client: Client,
    keys: Keys,
    *,
    read_charged: ReadCharged | None = None,
    pace: Pace | None = None,
    looks: int = LOOKS,
) -> VerifyReport:
    """Verifies a ledger that others may be using. Without ``read_charged`` hours are not compared with their events.

    Raises:
        FormatError: there is no ledger, or it is not this release's.
        RedisError, OSError: Valkey cannot be reached.
    """
    return await _Pass(client, keys, pace or Pace(), looks).run(read_charged)


async def repair_orphans(client: Client, keys: Keys, orphans: Iterable[OrphanedShares]) -> Mapping[int, bool]:
    """Notes orphaned shares as those of departed processes, so that the reaper gives them back. Answers by epoch
    whether that was still needed. Raises what redis-py raises."""
    done: dict[int, bool] = {}
    for orphan in orphans:
        home = orphan.epoch % PARTITIONS_MAX
        if home >= keys.partitions:
            done[orphan.epoch] = False
            continue
        call = script_call(_REPAIR, [keys.meta(home)], f"departed:{orphan.epoch}", orphan.units)
        replies = await call_each(client, [call])
        raise_first(replies)
        done[orphan.epoch] = bool(replies[0])
    return done
