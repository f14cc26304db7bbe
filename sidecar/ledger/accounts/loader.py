"""Writes accounts into the ledger, and reads them back for people.

Everything but counts is written by ``load``, through lua/load.lua: compare-and-set on the account's version, so that
two loaders never mix their prices and funds. Settled and held units are the request path's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from heapq import merge
from itertools import islice
from typing import Any, Final

import msgpack
from redis.exceptions import NoScriptError, ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.accounts.account_about import About, packed_view
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot, MetricSnapshot, snapshot_of
from sidecar.ledger.accounts.account_spec import AccountSpec, Status
from sidecar.ledger.accounts.account_state import FIELDS, AccountState, ClosedUsage, decode_account
from sidecar.ledger.accounts.api_keys import ApiKeys
from sidecar.ledger.accounts.load_errors import (
    ApiKeyTaken,
    Fenced,
    LedgerUnavailable,
    LoadError,
    LoadRefused,
    MalformedAccount,
    PeriodMoved,
    UnknownAccount,
)
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import FormatError, open_arguments, open_partitions, partition_format
from sidecar.ledger.pricing.price_tables import PackedTable, PriceError, amounts, decimals
from sidecar.ledger.pricing.rating import unpacked
from sidecar.valkey.calls import Call, call_each, raise_first, script_call
from sidecar.valkey.scripts import script
from sidecar.valkey.server_time import server_now_ms
from sidecar.valkey.topology import CLIENT_ERRORS, Client

__all__ = [
    "AccountLoader",
    "AccountSnapshot",
    "ApiKeyTaken",
    "Fenced",
    "FormatError",
    "LedgerUnavailable",
    "LoadError",
    "LoadRefused",
    "MalformedAccount",
    "MetricSnapshot",
    "PeriodMoved",
    "PriceError",
    "UnknownAccount",
]

ATTEMPTS_MAX: Final = 32
"""A conflict means that another loader has written meanwhile; so many in a row mean that something else is wrong."""

LIST_MAX: Final = 10_000
LOOK_MIN: Final = 8
"""Ids of a partition that ``pages`` asks for at least."""

_READ: Final = """
-- Both parts of an account, as they are at one instant.
-- KEYS [1] state [2] hash   ARGV fields of the hash
return {redis.call('GET', KEYS[1]), redis.call('HMGET', KEYS[2], unpack(ARGV))}
"""


class AccountLoader:
    """Accounts of one ledger. Safe to use from several tasks and several processes at once.

    What writes opens the ledger first, once. It raises ``FormatError`` too, and so do ``list`` and ``show`` where they
    find nothing: the ledger is another release's, or has another number of partitions.
    """

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._api_keys = ApiKeys(client, keys)
        self._is_open = False
        self._opening = asyncio.Lock()

    async def load(
        self,
        spec: AccountSpec,
        now_ms: int | None = None,
        *,
        period_starts_ms: Mapping[str, int] | None = None,
        fence: int | None = None,
        counted: Mapping[str, int] | None = None,
        keep_operator_status: bool = False,
    ) -> int:
        """Write an account, new or not; answer its new version.

        ``now_ms`` chooses the period (None: Valkey's clock). ``period_starts_ms`` says to which current periods
        ``spec.unsettled`` belongs, by name of the subscription: it counts what was due before them; of others that of
        the moment is taken. ``fence`` is a leader's token (``sidecar.valkey.lease``). ``counted``: units by metric that
        an account which is new to the ledger has used already in the period of the subscription that has a price for
        the metric, else of the first. With ``keep_operator_status`` an account that was suspended or closed by hand
        stays so.

        Raises:
            PriceError: an amount cannot be represented.
            ApiKeyTaken: a key is another account's.
            PeriodMoved: a current period starts elsewhere than ``period_starts_ms`` says.
            Fenced: a later leader has written the account.
            LoadRefused: the script cannot take it.
            MalformedAccount: what is stored cannot be read.
            LedgerUnavailable: Valkey cannot be reached; whether the account was written is not known.
        """
        spec.check()
        with _translated():
            await self._open()
            now = await self._now_ms() if now_ms is None else now_ms
            new = [] if spec.api_keys is None else await self._api_keys.assign(spec.id, spec.api_keys)
            try:
                version, removed = await self._write(
                    spec, now, period_starts_ms or {}, fence, counted or {}, keep_operator_status
                )
            except (LoadError, PriceError, MalformedAccount):
                await self._api_keys.remove(spec.id, new)
                raise
            if removed:
                # Another loader may have given them back since.
                kept = (await self._read(spec.id)).about.api_keys
                await self._api_keys.remove(spec.id, [digest for digest in removed if digest not in kept])
            return version

    async def _write(
        self,
        spec: AccountSpec,
        now_ms: int,
        period_starts_ms: Mapping[str, int],
        fence: int | None,
        counted: Mapping[str, int],
        keep_operator_status: bool,
    ) -> tuple[int, Sequence[str]]:
        keeps_digits = False
        for _ in range(ATTEMPTS_MAX):
            state = await self._read(spec.id)
            digits = spec.digits_needed()
            if state.version and (period_starts_ms or digits < state.digits):
                current = state.rolled_over(await self._now_ms())
                _check_starts(spec, current, period_starts_ms)
                digits = max(digits, state.digits if keeps_digits else _digits_kept(spec, current))
            digests = state.about.api_keys if spec.api_keys is None else spec.api_keys
            by_operator = state.about.by_operator if keep_operator_status else None
            word, version = await self._run_load(
                spec.id,
                [
                    state.version,
                    spec.id,
                    max(spec.status, by_operator or Status.ACTIVE),
                    _or_false(spec.scaled_ceiling(digits)),
                    int(spec.counts_unsettled),
                    spec.limits.interval_us,
                    spec.limits.burst_allowed if spec.limits.per_second else 0,
                    spec.limits.per_day,
                    packed_view(spec, digits),
                    About.of(spec, digests, by_operator).packed(),
                    _or_false(spec.scaled_unsettled(digits)),
                    digits,
                    state.digits,
                    _or_false(fence),
                    list(_loaded_subscriptions(spec, state, digits, now_ms, period_starts_ms, counted)),
                ],
            )
            if word == b"OK":
                return version, [digest for digest in state.about.api_keys if digest not in digests]
            # Something that stays is exact only with the decimals that are stored.
            keeps_digits = keeps_digits or word == b"INEXACT"
        raise LoadRefused(
            f"account {spec.id}: other processes keep changing it; all {ATTEMPTS_MAX} attempts met a conflict"
        )

    async def suspend(self, account: str) -> int:
        """Refuse the account's calls (403) until it is resumed; answer the new version. Raises as ``load``, and
        ``UnknownAccount``."""
        return await self._set_status(account, Status.SUSPENDED)

    async def resume(self, account: str) -> int:
        """Let the account call again. Raises as ``suspend``."""
        return await self._set_status(account, Status.ACTIVE)

    async def close(self, account: str) -> int:
        """Refuse the account's calls for good; what it owes stays. Raises as ``suspend``."""
        return await self._set_status(account, Status.CLOSED)

    async def _set_status(self, account: str, status: Status) -> int:
        by_operator = None if status is Status.ACTIVE else status

        def changed(state: AccountState) -> AccountState:
            return replace(state, status=status, about=replace(state.about, by_operator=by_operator))

        return await self._rewrite(account, changed)

    async def end_period(
        self,
        account: str,
        at_ms: int,
        next_ends_ms: Sequence[int],
        fence: int | None = None,
        *,
        subscription: str | None = None,
        close: bool = False,
    ) -> int:
        """End the period of one of the account's subscriptions (None: the first) at ``at_ms`` instead of later; the
        next one then ends with the first of ``next_ends_ms`` after it. A period that ends before that anyway is left as
        it is. With ``close`` nothing of it is held any more from now on; without other subscriptions the
        account is closed. Answers the new version.

        This is how a period ends at an instant that nobody knew in advance, such as an upgrade: at a whole second yet
        to come, so that every event is on one side of it by its time.

        Raises as ``suspend``, and ``Fenced``.
        """

        def changed(state: AccountState) -> AccountState:
            ending = state.first if subscription is None else state.named(subscription)
            if ending is None:
                return state
            ended = ending
            if close and len(state.subscriptions) == 1:
                state = replace(state, status=Status.CLOSED)
            elif close:
                ended = replace(ended, prices={})
            if at_ms < ending.end_ms:
                ended = replace(ended, end_ms=at_ms, next_ends_ms=tuple(next_ends_ms))
            return replace(
                state, subscriptions=tuple(ended if each is ending else each for each in state.subscriptions)
            )

        return await self._rewrite(account, changed, fence)

    async def suspend_until_loaded(self, account: str, fence: int | None = None) -> int:
        """Suspend the account until it is loaded again, as what is known of it is too old. Raises as ``end_period``."""

        def changed(state: AccountState) -> AccountState:
            return replace(state, status=max(state.status, Status.SUSPENDED))

        return await self._rewrite(account, changed, fence)

    async def adjust_unsettled(self, account: str, amount: Decimal) -> tuple[AccountState, AccountState]:
        """Add ``amount`` to the cost of earlier periods, in units of the currency; answer the account before and after.

        Raises as ``suspend``, and ``LoadRefused``: Lago decides this account's funds, or earlier periods do not count
        for it, or the amount has more decimals than the account.
        """
        found: list[AccountState] = []

        def changed(state: AccountState) -> AccountState:
            if state.fence:
                raise LoadRefused(f"account {account}: Lago decides its funds; top up its wallet there")
            if not state.counts_unsettled:
                raise LoadRefused(f"account {account}: mode {state.mode} does not count the cost of earlier periods")
            scaled = amount.scaleb(state.digits)
            if scaled != scaled.to_integral_value():
                raise LoadRefused(f"account {account}: {amount} has more than the account's {state.digits} decimals")
            found.append(state)
            return replace(state, unsettled=state.unsettled + int(scaled))

        await self._rewrite(account, changed)
        return found[-1], await self.state(account)

    async def forget_closed(self, account: str, periods: Iterable[ClosedUsage]) -> None:
        """Drop records of periods that are over and paid for. Raises ``LedgerUnavailable``."""
        names = [name for each in periods for name in (each.start_ms, each.subscription, each.metric)]
        if names:
            keys = (self._keys.account(account), self._keys.clock(self._keys.partition(account)))
            with _translated():
                await self._run("forget_closed", keys, names)

    async def state(self, account: str) -> AccountState:
        """The account as stored, version 0 if it was never loaded. Raises as ``show``."""
        with _translated():
            return await self._read(account)

    async def now_ms(self) -> int:
        """Valkey's clock, by which periods end. Raises ``LedgerUnavailable``."""
        with _translated():
            return await self._now_ms()

    async def _rewrite(
        self, account: str, changed: Callable[[AccountState], AccountState], fence: int | None = None
    ) -> int:
        # Everything else is passed through as it is stored, scaled and packed, so that it cannot change on the way.
        with _translated():
            await self._open()
            for _ in range(ATTEMPTS_MAX):
                stored = await self._read(account)
                if stored.version == 0:
                    raise UnknownAccount(f"there is no account {account!r}")
                rolled = stored.rolled_over(await self._now_ms())
                state = changed(rolled)
                is_same_unsettled = state.unsettled == rolled.unsettled
                word, version = await self._run_load(
                    account,
                    [
                        stored.version,
                        account,
                        state.status,
                        _or_false(state.ceiling),
                        int(state.counts_unsettled),
                        state.rate_interval_us,
                        state.burst,
                        state.day_limit,
                        state.view,
                        state.about.packed(),
                        not is_same_unsettled and state.unsettled,
                        state.digits,
                        state.digits,
                        _or_false(fence),
                        [
                            [
                                each.name,
                                each.start_ms,
                                each.end_ms,
                                each.next_ends_ms,
                                dict(each.prices),
                                not is_same_unsettled and each.start_ms,
                                False,
                            ]
                            for each in state.subscriptions
                        ],
                    ],
                )
                if word == b"OK":
                    return version
            raise LoadRefused(
                f"account {account}: other processes keep changing it; all {ATTEMPTS_MAX} attempts met a conflict"
            )

    async def list(self, after: str = "", limit: int = 100, *, reachable: bool = False) -> tuple[str, ...]:
        """Ids in order, those that follow ``after``, at most ``limit`` (1 to 10,000). ``reachable``: those of
        partitions that can be reached, if any can. Raises ``LedgerUnavailable``."""
        assert 1 <= limit <= LIST_MAX, f"a page of {limit} accounts"
        low = f"({after}" if after else "-"
        indexes = [self._keys.accounts(partition) for partition in range(self._keys.partitions)]
        with _translated():
            pages = await call_each(
                self._client, [Call(key, ("ZRANGEBYLEX", key, low, "+", "LIMIT", 0, limit)) for key in indexes]
            )
            if reachable:
                pages = [page for page in pages if not isinstance(page, Exception)] or pages
            raise_first(pages)
            if not any(pages):
                await self._check_format()
        return tuple(islice(merge(*([_text(each) for each in page] for page in pages)), limit))

    async def pages(self, size: int, *, reachable: bool = False) -> AsyncIterator[tuple[str, ...]]:
        """The ids of all accounts, at most ``size`` at a time and in no order. Each is read once, where ``list`` looks
        for the next ones in every partition. An account that is loaded meanwhile may be left out. ``reachable`` and
        errors as with ``list``."""
        each_max = max(LOOK_MIN, size // self._keys.partitions)
        lows = {self._keys.accounts(partition): b"-" for partition in range(self._keys.partitions)}
        is_first = True
        while lows:
            with _translated():
                found = await call_each(
                    self._client,
                    [Call(key, ("ZRANGEBYLEX", key, low, "+", "LIMIT", 0, each_max)) for key, low in lows.items()],
                )
                usable = [each for each in found if not isinstance(each, Exception)]
                raise_first(() if reachable and usable else found)
                if is_first and not any(usable):
                    await self._check_format()
            is_first = False
            lows = {
                key: b"(" + ids[-1]
                for key, ids in zip(lows, found, strict=True)
                if not isinstance(ids, Exception) and len(ids) == each_max
            }
            ids = [_text(id_) for page in usable for id_ in page]
            for at in range(0, len(ids), size):
                yield tuple(ids[at : at + size])

    async def show(self, account: str) -> AccountSnapshot | None:
        """An account as it stands, None if it was never loaded.

        Raises:
            LedgerUnavailable: Valkey cannot be reached.
            MalformedAccount: what is stored cannot be read.
        """
        with _translated():
            stored, now = await self._read(account), await self._now_ms()
            if stored.version == 0:
                await self._check_format()
                return None
        return snapshot_of(account, stored, stored.rolled_over(now))

    async def account_of(self, sha256_hex: str) -> str | None:
        """The account that an API key belongs to, None if there is no such key. Raises ``LedgerUnavailable``."""
        return await self._api_keys.account_of(sha256_hex)

    async def _read(self, account: str) -> AccountState:
        keys = self._keys.state(account), self._keys.account(account)
        state, values = await self._client.eval(_READ, len(keys), *keys, *FIELDS)
        return decode_account(account, state, values)

    async def _now_ms(self) -> int:
        return await server_now_ms(self._client)

    async def _run_load(self, account: str, request: Sequence[Any]) -> tuple[bytes, int]:
        """The reply's word, and its version: OK, CONFLICT or INEXACT."""
        partition = self._keys.partition(account)
        keys = (
            self._keys.state(account), self._keys.account(account), self._keys.accounts(partition),
            self._keys.clock(partition),
        )  # fmt: skip
        try:
            word, number, *_ = await self._run("load", keys, request)
        except ResponseError as error:
            if str(error).startswith("ACCOUNT"):
                reason = str(error).removeprefix("ACCOUNT 1 ")[:200]
                raise MalformedAccount(f"account {account!r} cannot be read from the ledger: {reason}") from None
            if str(error).startswith(("INVALID", "OVERFLOW")):
                raise LoadRefused(str(error).partition(" ")[2]) from None
            raise
        if word == b"FENCED":
            raise Fenced(f"account {account}: a later leader ({int(number)}) has written it")
        return word, int(number)

    async def open_lost_partitions(self) -> None:
        """Makes partitions anew that have lost their data since. One that a gateway has made again hides the others:
        no load of its accounts finds anything wrong.

        Raises:
            LedgerUnavailable: Valkey cannot be reached.
        """
        with _translated():
            self._is_open = False
            await self._open()

    async def _open(self) -> None:
        async with self._opening:
            if not self._is_open:
                # A partition that is away is not opened; when it is back without data, its answer says so.
                await open_partitions(self._client, self._keys, range(self._keys.partitions))
                self._is_open = True

    async def _check_format(self) -> None:
        """Whether the ledger, if there is one, can be used; makes none."""
        if self._is_open:
            return
        text = script("open").text
        arguments = [open_arguments(self._keys, partition, "") for partition in range(self._keys.partitions)]
        replies = await call_each(self._client, [script_call(text, names, *rest) for names, rest in arguments])
        answers = [reply for reply in replies if not isinstance(reply, Exception)]
        raise_first(replies if not answers else ())
        for found in map(partition_format, answers):
            if found is not None:
                found.check(self._keys)

    async def _run(self, name: str, keys: Sequence[str], argument: Sequence[Any]) -> Any:
        await self._open()
        try:
            return await self._evaluated(name, keys, argument)
        except ResponseError as error:
            if not str(error).startswith("FORMAT"):
                raise
        # The partition has lost its data since, or has been migrated: to open it tells which.
        self._is_open = False
        await self._open()
        return await self._evaluated(name, keys, argument)

    async def _evaluated(self, name: str, keys: Sequence[str], argument: Sequence[Any]) -> Any:
        wanted = script(name)
        # cmsgpack reads strings only, not the newer type for bytes.
        packed = msgpack.packb(argument, use_bin_type=False)
        try:
            return await self._client.execute_command("EVALSHA", wanted.sha, len(keys), *keys, packed)
        except NoScriptError:
            return await self._client.execute_command("EVAL", wanted.text, len(keys), *keys, packed)

    def __repr__(self) -> str:
        return f"AccountLoader({self._keys.prefix})"


class _translated:
    """Turns what redis-py raises into ``LedgerUnavailable``, in one place."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CLIENT_ERRORS):
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error


def _check_starts(spec: AccountSpec, current: AccountState, period_starts_ms: Mapping[str, int]) -> None:
    for name, expected_ms in period_starts_ms.items():
        subscription = current.named(name)
        if subscription is not None and subscription.start_ms != expected_ms:
            raise PeriodMoved(
                f"account {spec.id}: the current period starts at {subscription.start_ms}, not {expected_ms}"
            )


def _digits_kept(spec: AccountSpec, current: AccountState) -> int:
    """Decimals in which all is exact that a load leaves as it is stored: what earlier periods owe, their records, and
    the tables of metrics that leave the plan."""
    money = [record.cost for record in current.closed]
    if spec.unsettled is None:
        money.append(current.unsettled)
    kept: list[PackedTable] = []
    plans = {each.name: each.prices for each in spec.subscriptions}
    for subscription in current.subscriptions:
        plan = plans.get(subscription.name)
        for usage in subscription.usages:
            table = subscription.table(usage.metric)
            if plan is None:
                # The subscription ends: what it has cost joins the unsettled cost, and holds keep their table.
                money.append(subscription.cost_of(usage))
            if table is not None and (usage.held if plan is None else usage.metric not in plan):
                kept.append(table)
    values: list[Decimal] = [current.money(each) for each in money]
    values += [amount for table in kept for amount in amounts(unpacked(table, current.digits))]
    return max(map(decimals, values), default=0)


def _loaded_subscriptions(
    spec: AccountSpec,
    state: AccountState,
    digits: int,
    now_ms: int,
    period_starts_ms: Mapping[str, int],
    counted: Mapping[str, int],
) -> Iterator[list[Any]]:
    """As lua/load.lua takes them."""
    owners = {metric: each.name for each in reversed(spec.subscriptions) for metric in each.prices}
    for each, prices in zip(spec.subscriptions, spec.packed_prices(digits), strict=True):
        bounds, stored = each.period.at(now_ms), state.named(each.name)
        expected_ms: int | bool = False
        if state.version and spec.unsettled is not None and stored is not None:
            expected_ms = period_starts_ms.get(each.name, stored.start_ms)
        units = {m: n for m, n in counted.items() if owners.get(m, spec.subscription) == each.name}
        yield [each.name, bounds.start_ms, bounds.end_ms, bounds.next_ends_ms, prices, expected_ms, units or False]


def _or_false(value: int | None) -> int | bool:
    return False if value is None else value


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
