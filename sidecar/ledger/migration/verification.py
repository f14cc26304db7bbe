"""Compares both ledgers after a migration: each account, each entry, and the sums.

The new side is read as the new release reads it, and not by what made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgpack

from sidecar.ledger.accounts.account_state import FIELDS, AccountState, decode_account
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.accounts.state_values import unpack_state
from sidecar.ledger.hours import MalformedHours, day_counts
from sidecar.ledger.keys import Keys
from sidecar.ledger.migration.conversion import converted_about, rate_text
from sidecar.ledger.migration.first_format import FirstAccount, FirstKeys, decode_first_account
from sidecar.ledger.migration.first_reader import FirstCensus, hour_units, id_pages, parsed_pages
from sidecar.ledger.migration.migration_report import DIFFERENCES_MAX, Tally, rows_of
from sidecar.ledger.transfer.access import Access, Progress
from sidecar.ledger.transfer.names import stream_key
from sidecar.ledger.transfer.streams import merged_pages
from sidecar.valkey.calls import Call

MOVED_KINDS = ("billing", "sync", "absent", "reload-requests", "scheduled-reloads", "webhooks-seen")
"""Kinds of keys that both formats store alike."""

STREAM_NAMES = ("outbox", "sent", "dead-letters")


def moved_key(keys: Keys, kind: str, rest: str) -> str:
    """The new name of a key of ``MOVED_KINDS``."""
    match kind:
        case "billing":
            return keys.billing(rest)
        case "sync":
            return keys.sync(rest)
        case "absent":
            return keys.absent(rest)
        case "reload-requests":
            return keys.reload_requests()
        case "scheduled-reloads":
            return keys.scheduled_reloads()
    return keys.webhooks_seen()


def stream_sources(first: FirstKeys, keys: Keys, name: str, partition: int) -> dict[str, str]:
    """The streams of format 1 that become one of ``partition``."""
    return {
        f"{p:02d}": first.name(p, name) for p in range(first.partitions) if p % keys.partitions == partition
    }  # fmt: skip


class Verification:
    """``differences``: what is not the same, in words. ``released``: units that were held, by metric."""

    def __init__(self, access: Access, keys: Keys, first: FirstKeys, census: FirstCensus, progress: Progress) -> None:
        self.before, self.after = Tally(), Tally()
        self.differences: list[str] = []
        self.released: dict[str, int] = {}
        self._compared = Counter[str]()
        self._access = access
        self._keys = keys
        self._first = first
        self._census = census
        self._progress = progress

    def __repr__(self) -> str:
        return f"Verification({len(self.differences)} differences)"

    async def run(self) -> None:
        """Compares everything; stops early where too much differs."""
        for partition in range(self._first.partitions):
            await self._accounts(self._first.name(partition, "accounts"), partition, listed=True)
            await self._accounts(self._first.unlisted(partition), partition, listed=False)
        await self._listed()
        await self._hours()
        for name in STREAM_NAMES:
            for partition in range(self._keys.partitions):
                await self._stream(name, partition)
        await self._others()
        for row in rows_of(self.before, self.after):
            if not row.agrees:
                self._differ(f"{row.what}: {row.before} before, {row.after} after")

    def _differ(self, what: str) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(what)

    async def _accounts(self, index: str, partition: int, *, listed: bool) -> None:
        async for page in id_pages(self._access, index):
            ids = [each.decode() for each in page]
            olds = [self._first.name(partition, f"account:{id_}") for id_ in ids]
            states = [self._keys.state(id_) for id_ in ids]
            hashes = [self._keys.account(id_) for id_ in ids]
            replies = await self._access.each(
                [Call(key, ("HGETALL", key)) for key in olds]
                + [Call(key, ("GET", key)) for key in states]
                + [Call(key, ("HGETALL", key)) for key in hashes]
            )
            count = len(ids)
            for at, id_ in enumerate(ids):
                self._account(id_, replies[at], replies[count + at], replies[2 * count + at], listed)
            self._progress("accounts compared", self.before.accounts + self.before.unlisted, None)

    def _account(
        self,
        id_: str,
        old_fields: Mapping[bytes, bytes],
        state: bytes | None,
        fields: Mapping[bytes, bytes],
        listed: bool,
    ) -> None:
        try:
            old = decode_first_account(old_fields)
            new = decode_account(id_, state, [fields.get(name.encode()) for name in FIELDS])
            limits = unpack_state(state).limits if state is not None else (0, 0, 0, 0)
            _tally_first(self.before, old)
            _tally(self.after, new)
            for name, packed in fields.items():
                if name[:1] == b"h" and name[1:].isdigit():
                    for _, _, metric, units in day_counts(packed):
                        self.after.hours[metric.decode()] += units
            for usage in old.usages:
                if usage.held:
                    self.released[usage.metric] = self.released.get(usage.metric, 0) + usage.held
            wrong = _different(old, new, limits)
        except (ValueError, MalformedAccount, MalformedHours) as error:
            wrong = [f"it cannot be read: {error}"]
        if state is None:
            wrong.append("it has no state")
        for tally in (self.before, self.after):
            if listed:
                tally.accounts += 1
            else:
                tally.unlisted += 1
        for what in wrong:
            self._differ(f"account {id_!r}: {what}")

    async def _listed(self) -> None:
        keys = [self._keys.accounts(partition) for partition in range(self._keys.partitions)]
        self.after.accounts = sum(await self._access.each([Call(key, ("ZCARD", key)) for key in keys]))

    async def _hours(self) -> None:
        for done, (hour, homes) in enumerate(sorted(self._census.hours.items()), 1):
            for home in homes:
                async for units in hour_units(self._access, self._first, hour, home):
                    self.before.hours.update(units)
            self._progress("hours compared", done, len(self._census.hours))

    async def _stream(self, name: str, partition: int) -> None:
        sources = stream_sources(self._first, self._keys, name, partition)
        key = stream_key(self._keys, name, partition)
        lengths = await self._access.each(
            [Call(source, ("XLEN", source)) for source in sources.values()] + [Call(key, ("XLEN", key))]
        )
        self.before.entries[name] += sum(lengths[:-1])
        self.after.entries[name] += lengths[-1]
        if not any(lengths):
            return
        new_pages = merged_pages(self._access, {"": key}, {})
        waiting: list[tuple[bytes, ...]] = []
        async for page in merged_pages(self._access, sources, {}):
            while len(waiting) < len(page):
                more = await anext(new_pages, None)
                if more is None:
                    break
                waiting += [entry.fields for entry in more]
            wanted = [entry.fields for entry in page]
            if waiting[: len(page)] != wanted:
                self._differ(f"{name} of partition {partition}: other entries from the entry {page[0].id} on")
                return
            del waiting[: len(page)]
            self._compared[name] += len(page)
            self._progress(f"entries of {name} compared", self._compared[name], None)

    async def _others(self) -> None:
        async for page in parsed_pages(self._access, self._first):
            api_keys = [(what.rest, key) for what, key, _ in page if what.kind == "apikey"]
            owners = await self._access.each([Call(key, ("GET", key)) for _, key in api_keys])
            places = [(self._keys.api_keys(bytes.fromhex(rest)), bytes.fromhex(rest)) for rest, _ in api_keys]
            found = await self._access.each([Call(key, ("HGET", key, sha256)) for key, sha256 in places])
            for (rest, _), owner, other in zip(api_keys, owners, found, strict=True):
                self.before.api_keys += 1
                self.after.api_keys += other is not None
                if owner != other:
                    self._differ(f"API key sha256 {rest[:12]}…: {owner!r} before, {other!r} after")
            moved = [(what, key) for what, key, _ in page if what.kind in MOVED_KINDS]
            names = [moved_key(self._keys, what.kind, what.rest) for what, _ in moved]
            olds = await self._access.each([_value_call(what.kind, key) for what, key in moved])
            news = await self._access.each(
                [_value_call(what.kind, key) for (what, _), key in zip(moved, names, strict=True)]
            )
            for (what, _), old, new in zip(moved, olds, news, strict=True):
                if not old or (what.kind == "absent" and not new):  # it had an end, which has come
                    continue
                self.before.others[what.kind] += 1
                self.after.others[what.kind] += bool(new)
                if old != new:
                    self._differ(f"{what.kind} {what.rest}: not the same")


def _value_call(kind: str, key: str) -> Call:
    """Reads all of a key."""
    if kind in ("billing", "sync"):
        return Call(key, ("HGETALL", key))
    return Call(key, ("GET", key) if kind == "absent" else ("ZRANGE", key, 0, -1, "WITHSCORES"))


def _different(old: FirstAccount, new: AccountState, limits: Any) -> list[str]:
    """What an account has not kept."""
    first = new.first
    pairs: dict[str, tuple[Any, Any]] = {
        "version": (old.version, new.version),
        "status": (old.status, int(new.status)),
        "ceiling": (old.ceiling, new.ceiling),
        "counts_unsettled": (old.counts_unsettled, new.counts_unsettled),
        "rate interval": (old.rate_interval_us, new.rate_interval_us),
        "burst": (old.burst, new.burst),
        "day limit": (old.day_limit, new.day_limit),
        "unsettled cost": (old.unsettled, new.unsettled),
        "number of subscriptions": (1, len(new.subscriptions)),
        "period": ((old.start_ms, old.end_ms), (first.start_ms, first.end_ms)),
        "settled units": (
            {each.metric: each.settled for each in old.usages},
            {each.metric: each.settled for each in first.usages},
        ),
        "held units": (0, sum(each.held + len(each.shares) for each in first.usages)),
        "limits": ([old.tat_us, old.day, old.day_count], [limits[0], limits[2], limits[3]]),
        "closed records": (
            [(each.start_ms, each.metric, each.units, each.cost) for each in old.closed],
            [(each.start_ms, each.metric, each.units, each.cost) for each in new.closed],
        ),
        "fence": (old.fence or 0, new.fence),
    }
    if old.version:
        pairs |= {
            "following periods": (old.next_ends_ms, first.next_ends_ms),
            "prices": (dict(old.prices), dict(first.prices)),
            "former prices": (dict(old.former_prices), dict(first.former_prices)),
            "decimals": (old.digits, new.digits),
            "about": (converted_about(old.info), new.about),
            "view": (_expected_view(old), msgpack.unpackb(new.view, raw=False)),
        }
    return [
        f"its {what} was {before!r} and is {after!r}"[:300]
        for what, (before, after) in pairs.items()
        if before != after
    ]


def _expected_view(old: FirstAccount) -> list[Any]:
    info = old.info
    return [
        info["digits"], info["currency"], info["mode"], rate_text(info["rate_per_second"]), info["burst"],
        info["day_limit"], max(0, info["ceiling"] or 0), info["constant_prices"],
    ]  # fmt: skip


def _tally_first(tally: Tally, old: FirstAccount) -> None:
    currency, digits = str(old.info.get("currency", "")), old.digits or 0
    _add(tally.unsettled, currency, old.unsettled, digits)
    if old.ceiling is None:
        tally.unlimited += 1
    else:
        _add(tally.ceilings, currency, old.ceiling, digits)
    tally.decimals += digits
    for usage in old.usages:
        tally.settled[usage.metric] += usage.settled
    for record in old.closed:
        tally.closed_records += 1
        tally.closed_units += record.units
        _add(tally.closed_cost, currency, record.cost, digits)


def _tally(tally: Tally, new: AccountState) -> None:
    _add(tally.unsettled, new.currency, new.unsettled, new.digits)
    if new.ceiling is None:
        tally.unlimited += 1
    else:
        _add(tally.ceilings, new.currency, new.ceiling, new.digits)
    tally.decimals += new.digits
    for each in new.subscriptions:
        for usage in each.usages:
            tally.settled[usage.metric] += usage.settled
    for record in new.closed:
        tally.closed_records += 1
        tally.closed_units += record.units
        _add(tally.closed_cost, new.currency, record.cost, new.digits)


def _add(sums: dict[str, Decimal], currency: str, scaled: int, digits: int) -> None:
    sums[currency] = sums.get(currency, Decimal(0)) + Decimal(scaled).scaleb(-digits)
