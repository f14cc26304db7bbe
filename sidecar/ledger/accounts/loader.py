"""Writes accounts into the ledger, and reads them back for people.

Everything but counts is written by ``load``, through lua/load.lua: compare-and-set on the account's version, so that
two loaders never mix their prices and funds. Settled and held units are the request path's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final, cast

import msgpack
import orjson
from redis.exceptions import NoScriptError, ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot, MetricSnapshot, snapshot_of
from sidecar.ledger.accounts.account_spec import AMOUNTS_OF, AccountSpec, Status
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage, decode_account
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
from sidecar.ledger.pricing.currencies import exponent
from sidecar.ledger.pricing.price_tables import PriceError, Standard
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS, Client

__all__ = [
    "AccountLoader",
    "AccountSnapshot",
    "ApiKeyTaken",
    "Fenced",
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


@dataclass(frozen=True, slots=True)
class _Change:
    """The changes of a rewrite; the rest of the account stays."""

    status: Status
    info: Mapping[str, Any]
    period_end_ms: int
    next_ends_ms: Sequence[int]


class AccountLoader:
    """Accounts of one ledger. Safe to use from several tasks and several processes at once."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._api_keys = ApiKeys(client, keys)

    async def load(
        self,
        spec: AccountSpec,
        now_ms: int | None = None,
        *,
        period_start_ms: int | None = None,
        fence: int | None = None,
        counted: Mapping[str, int] | None = None,
        keep_operator_status: bool = False,
    ) -> int:
        """Write an account, new or not; answer its new version.

        ``now_ms`` chooses the period (None: Valkey's clock). ``period_start_ms`` says to which current period
        ``spec.unsettled`` belongs: it counts what was due before that; without it, that of the moment is taken.
        ``fence`` is a leader's token (``sidecar.valkey.lease``). ``counted``: units by metric that an account which is
        new to the ledger has used in its period already. With ``keep_operator_status`` an account that was suspended
        or closed by hand stays so.

        Raises:
            PriceError: an amount cannot be represented.
            ApiKeyTaken: a key is another account's.
            PeriodMoved: the current period starts elsewhere than ``period_start_ms``.
            Fenced: a later leader has written the account.
            LoadRefused: the script cannot take it.
            LedgerUnavailable: Valkey cannot be reached; whether the account was written is not known.
        """
        spec.check()
        with _translated():
            now = await self._now_ms() if now_ms is None else now_ms
            new = [] if spec.api_keys is None else await self._api_keys.assign(spec.id, spec.api_keys)
            try:
                version, removed = await self._write(
                    spec, now, period_start_ms, fence, counted or {}, keep_operator_status
                )
            except (LoadError, PriceError):
                await self._api_keys.remove(spec.id, new)
                raise
            if removed:
                # Another loader may have given them back since.
                kept = _api_keys_in((await self._read(spec.id)).info)
                await self._api_keys.remove(spec.id, [digest for digest in removed if digest not in kept])
            return version

    async def _write(
        self,
        spec: AccountSpec,
        now_ms: int,
        period_start_ms: int | None,
        fence: int | None,
        counted: Mapping[str, int],
        keep_operator_status: bool,
    ) -> tuple[int, Sequence[str]]:
        bounds = spec.period.at(now_ms)
        for _ in range(ATTEMPTS_MAX):
            state = await self._read(spec.id)
            if period_start_ms is not None and state.version > 0:
                current_ms = state.rolled_over(await self._now_ms()).period_start_ms
                if current_ms != period_start_ms:
                    raise PeriodMoved(
                        f"account {spec.id}: the current period starts at {current_ms}, not {period_start_ms}"
                    )
            digits = max(state.digits, spec.digits_needed())
            stored_keys = _api_keys_in(state.info)
            digests = stored_keys if spec.api_keys is None else spec.api_keys
            expected_start = state.period_start_ms if period_start_ms is None else period_start_ms
            info = _info(spec, digits, digests)
            status = spec.status
            if keep_operator_status and (word := state.info.get("by_operator")):
                status = max(status, Status.of(word))
                info |= {"by_operator": word, "status": status.word}
            version = await self._run_load(
                spec.id,
                [
                    state.version,
                    spec.id,
                    int(status),
                    _or_false(spec.scaled_ceiling(digits)),
                    int(spec.counts_unsettled),
                    spec.limits.interval_us,
                    spec.limits.burst_allowed if spec.limits.per_second else 0,
                    spec.limits.per_day,
                    spec.packed_prices(digits),
                    orjson.dumps(info).decode(),
                    bounds.start_ms,
                    bounds.end_ms,
                    list(bounds.next_ends_ms),
                    _or_false(spec.scaled_unsettled(digits)),
                    digits,
                    state.digits,
                    expected_start if state.version > 0 and spec.unsettled is not None else False,
                    _or_false(fence),
                    dict(counted) or False,
                ],
            )
            if version is not None:
                return version, [digest for digest in stored_keys if digest not in digests]
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
        def changed(state: AccountState) -> _Change:
            info = {**state.info, "status": status.word, "by_operator": status.word}
            if status is Status.ACTIVE:
                del info["by_operator"]
            return _Change(status, info, state.period_end_ms, state.next_ends_ms)

        return await self._rewrite(account, changed)

    async def end_period(
        self,
        account: str,
        at_ms: int,
        next_ends_ms: Sequence[int],
        fence: int | None = None,
        *,
        close: bool = False,
    ) -> int:
        """End the account's period at ``at_ms`` instead of later; the next one then ends with the first of
        ``next_ends_ms`` after it. A period that ends before that anyway is left as it is. With ``close`` nothing is
        held any more from now on. Answers the new version.

        This is how a period ends at an instant that nobody knew in advance, such as an upgrade: at a whole second yet
        to come, so that every event is on one side of it by its time.

        Raises as ``suspend``, and ``Fenced``.
        """

        def changed(state: AccountState) -> _Change:
            status = Status.CLOSED if close else state.status
            info = {**state.info, "status": status.word}
            if at_ms < state.period_end_ms:
                return _Change(status, info, at_ms, tuple(next_ends_ms))
            return _Change(status, info, state.period_end_ms, state.next_ends_ms)

        return await self._rewrite(account, changed, fence)

    async def suspend_until_loaded(self, account: str, fence: int | None = None) -> int:
        """Suspend the account until it is loaded again, as what is known of it is too old. Raises as ``end_period``."""

        def changed(state: AccountState) -> _Change:
            status = max(state.status, Status.SUSPENDED)
            return _Change(status, {**state.info, "status": status.word}, state.period_end_ms, state.next_ends_ms)

        return await self._rewrite(account, changed, fence)

    async def forget_closed(self, account: str, periods: Iterable[ClosedUsage]) -> None:
        """Drop records of periods that are over and paid for. Raises ``LedgerUnavailable``."""
        fields = [f"closed:{period.start_ms}:{period.metric}" for period in periods]
        if fields:
            with _translated():
                await self._client.hdel(self._keys.account(account), *fields)

    async def state(self, account: str) -> AccountState:
        """The account as stored, version 0 if it was never loaded. Raises as ``show``."""
        with _translated():
            return await self._read(account)

    async def now_ms(self) -> int:
        """Valkey's clock, by which periods end. Raises ``LedgerUnavailable``."""
        with _translated():
            return await self._now_ms()

    async def _rewrite(self, account: str, changed: Callable[[AccountState], _Change], fence: int | None = None) -> int:
        # Everything else is passed through as it is stored, scaled and packed, so that it cannot change on the way.
        with _translated():
            for _ in range(ATTEMPTS_MAX):
                state = (await self._read(account)).rolled_over(await self._now_ms())
                if state.version == 0:
                    raise UnknownAccount(f"there is no account {account!r}")
                change = changed(state)
                info = {"version": 0} | {name: value for name, value in change.info.items() if name != "version"}
                version = await self._run_load(
                    account,
                    [
                        state.version,
                        account,
                        int(change.status),
                        _or_false(state.ceiling),
                        int(state.counts_unsettled),
                        state.rate_interval_us,
                        state.burst,
                        state.day_limit,
                        dict(state.prices),
                        orjson.dumps(info).decode(),
                        state.period_start_ms,
                        change.period_end_ms,
                        list(change.next_ends_ms),
                        False,
                        state.digits,
                        state.digits,
                        False,
                        _or_false(fence),
                        False,
                    ],
                )
                if version is not None:
                    return version
            raise LoadRefused(
                f"account {account}: other processes keep changing it; all {ATTEMPTS_MAX} attempts met a conflict"
            )

    async def list(self, after: str = "", limit: int = 100) -> tuple[str, ...]:
        """Ids in order, those that follow ``after``, at most ``limit`` (1 to 10,000). Raises ``LedgerUnavailable``."""
        assert 1 <= limit <= LIST_MAX, f"a page of {limit} accounts"
        low = f"({after}" if after else "-"
        with _translated():
            pages = await asyncio.gather(
                *(
                    self._client.zrangebylex(self._keys.accounts(partition), low, "+", start=0, num=limit)
                    for partition in range(self._keys.partitions)
                )
            )
        return tuple(islice(merge(*([_text(each) for each in page] for page in pages)), limit))

    async def show(self, account: str) -> AccountSnapshot | None:
        """An account as it stands, None if it was never loaded.

        Raises:
            LedgerUnavailable: Valkey cannot be reached.
            MalformedAccount: what is stored cannot be read.
        """
        with _translated():
            stored, now = await self._read(account), await self._now_ms()
        if stored.version == 0:
            return None
        return snapshot_of(account, stored, stored.rolled_over(now))

    async def account_of(self, sha256_hex: str) -> str | None:
        """The account that an API key belongs to, None if there is no such key. Raises ``LedgerUnavailable``."""
        return await self._api_keys.account_of(sha256_hex)

    async def _read(self, account: str) -> AccountState:
        fields = await self._client.hgetall(self._keys.account(account))
        # The client was made with decode_responses=False, which redis-py's types do not know.
        return decode_account(account, cast(Mapping[bytes, bytes], fields))

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _run_load(self, account: str, request: Sequence[Any]) -> int | None:
        """The new version, None for a conflict."""
        load = script("load")
        keys = (self._keys.account(account), self._keys.accounts(self._keys.partition(account)))
        # cmsgpack reads strings only, not the newer type for bytes.
        packed = msgpack.packb(request, use_bin_type=False)
        try:
            reply = await self._client.evalsha(load.sha.decode(), 2, *keys, packed)
        except NoScriptError:
            reply = await self._client.eval(load.text.decode(), 2, *keys, packed)
        except ResponseError as error:
            if str(error).startswith(("INVALID", "OVERFLOW")):
                raise LoadRefused(str(error).partition(" ")[2]) from None
            raise
        if reply[0] == b"FENCED":
            raise Fenced(f"account {request[1]}: a later leader ({int(reply[1])}) has written it")
        return int(reply[1]) if reply[0] == b"OK" else None

    def __repr__(self) -> str:
        return f"AccountLoader({self._keys.prefix})"


class _translated:
    """Turns what redis-py raises into ``LedgerUnavailable``, in one place."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CLIENT_ERRORS):
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error


def _info(spec: AccountSpec, digits: int, api_keys: Iterable[str]) -> dict[str, Any]:
    """The account for gateways and people, as JSON. The script puts the version in, where it finds ``"version":0``."""
    return {
        "version": 0,
        "digits": digits,
        "currency": spec.currency,
        "exponent": exponent(spec.currency),
        "mode": spec.mode,
        "status": spec.status.word,
        "ceiling": spec.scaled_ceiling(digits),
        "constant_prices": all(isinstance(table, Standard) for table in spec.prices.values()),
        "rate_per_second": float(spec.limits.per_second),
        "burst": spec.limits.burst_allowed if spec.limits.per_second else 0,
        "day_limit": spec.limits.per_day,
        "amounts": {
            name: format(value, "f") for name in AMOUNTS_OF[spec.mode] if (value := getattr(spec, name)) is not None
        },
        "api_keys": list(api_keys),
    }


def _api_keys_in(info: Any) -> tuple[str, ...]:
    return tuple(str(digest) for digest in info.get("api_keys") or ())


def _or_false(value: int | None) -> int | bool:
    return False if value is None else value


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
