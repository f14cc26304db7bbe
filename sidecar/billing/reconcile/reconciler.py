"""Loads accounts from Lago into the ledger, one at a time.

Only the leader does so. Each write carries its token, so that a leader that stood still writes nothing stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, cast

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.models import Tax
from sidecar.billing.reconcile.account_reading import AccountReading, LagoReader, lists_all_values, read_account
from sidecar.billing.reconcile.alerts import Alert, BillingRefused
from sidecar.billing.reconcile.credit_reading import CreditReader
from sidecar.billing.reconcile.desired_state import DesiredState, desired_state
from sidecar.billing.reconcile.metrics import BillingMetrics
from sidecar.billing.reconcile.reconcile_state import (
    ABSENT,
    LastReading,
    MalformedReconcileState,
    ReconcileState,
    decode_reconcile_state,
)
from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.accounts.loader import (
    AccountLoader,
    ApiKeyTaken,
    Fenced,
    LedgerUnavailable,
    LoadRefused,
    MalformedAccount,
    PeriodMoved,
    PriceError,
)
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each, raise_first
from sidecar.valkey.hash_fields import set_fields
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.billing")

ROUNDS_MAX: Final = 6
"""A period that is ended early, or that moved meanwhile: each makes it look at the ledger once more."""

TAXES_KEPT_S: Final = 60.0
RETRY_MS: Final = 2_000
"""After that an account is read again that changed while it was read."""

Result = Literal["loaded", "absent", "refused", "unavailable", "fenced", "dry-run"]


class UnitCounter(Protocol):
    """Units that OpenMeter has counted for an account since an instant; raises ``CountsUnavailable``."""

    async def __call__(self, account: str, metrics: tuple[str, ...], from_ms: int, to_ms: int) -> Mapping[str, int]: ...


class CountsUnavailable(Exception):
    """OpenMeter cannot say. The message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``before`` and ``after``: the ledger's account, rolled over; ``after`` None if nothing was loaded.

    ``is_final``: asking again at once would come to the same.
    """

    account: str
    result: Result
    why: str = ""
    is_final: bool = True
    desired: DesiredState | None = None
    before: AccountState | None = None
    after: AccountState | None = None
    alerts: tuple[Alert, ...] = ()


class Reconciler:
    """``sleep_until`` waits until Valkey's clock shows an instant in ms; tests with another clock give their own."""

    def __init__(
        self,
        lago: LagoReader,
        loader: AccountLoader,
        client: Client,
        keys: Keys,
        settings: LagoSettings,
        *,
        metrics: BillingMetrics | None = None,
        counts: UnitCounter | None = None,
        sleep_until: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.metrics = metrics or BillingMetrics()
        self.credits = CreditReader(lago)
        self._lago = lago
        self._loader = loader
        self._client = client
        self._keys = keys
        self._reload_requests = ReloadRequests(client, keys)
        self._settings = settings
        self._counts = counts
        self._sleep_until = sleep_until or self._wait_for
        self._flights: dict[str, asyncio.Task[Outcome]] = {}
        self._taxes: tuple[Tax, ...] = ()
        self._rounded_metrics: frozenset[str] = frozenset()
        self._listed_values: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
        self._taxes_until_s = 0.0
        self._reading_taxes = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Reconciler({self._lago!r}, {len(self._flights)} under way)"

    @property
    def mapping_number(self) -> int:
        """Of ``lago.billable_metrics``, 64 bits: another one means other prices for accounts that have not changed. 0
        without entries."""
        entries = sorted(repr(each) for each in self._settings.billable_metrics)
        digest = hashlib.blake2b("\n".join(entries).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") if entries else 0

    async def reconcile(
        self, account: str, token: int | None = None, *, fingerprint: str | None = None, thorough: bool = False
    ) -> Outcome:
        """Read the account from Lago and load it. Never raises for what Lago or Valkey do; the outcome says it.

        One that comes while the account is being read already joins that reading only if it has not begun to read; so
        it waits for it and reads again. ``thorough`` reads the wallets' transactions too.
        """
        flight = self._flights.get(account)
        if flight is not None:
            await asyncio.wait({flight})
        while (flight := self._flights.get(account)) is not None:
            # Others have waited too, and one of them reads now, from after the moment at which all of them asked.
            return await asyncio.shield(flight)
        task = asyncio.create_task(self._reconcile(account, token, fingerprint, thorough))
        self._flights[account] = task
        task.add_done_callback(lambda _: self._flights.pop(account, None))
        return await asyncio.shield(task)

    async def preview(self, account: str) -> Outcome:
        """The outcome that :meth:`reconcile` would have, without doing it."""
        return await self._guarded(account, self._preview(account))

    async def _preview(self, account: str) -> Outcome:
        saved = await self.reconcile_state(account)
        state = await self._rolled_over(account)
        reading = await self._read(account, state, saved, thorough=True)
        desired = desired_state(reading, state, saved, self._settings, reading.read_at_ms)
        return Outcome(account, "dry-run", desired.why, True, desired, state, None, desired.alerts)

    async def _reconcile(self, account: str, token: int | None, fingerprint: str | None, thorough: bool) -> Outcome:
        started = time.monotonic()
        outcome = await self._guarded(account, self._load_from_lago(account, token, fingerprint, thorough))
        self.metrics.reconciles[outcome.result] += 1
        self.metrics.reconcile_seconds += time.monotonic() - started
        kinds = [alert.kind for alert in outcome.alerts]
        if outcome.result != "unavailable":
            self.metrics.note_alerts(account, kinds)
        for alert in outcome.alerts:
            log.warning("reconcile finding", account=account, kind=alert.kind, message=alert.message)
        return outcome

    async def _guarded(self, account: str, work: Awaitable[Outcome]) -> Outcome:
        try:
            return await work
        except BillingRefused as error:
            return _refused(account, Alert(error.kind, account, str(error)))
        except (PriceError, LoadRefused) as error:
            return _refused(account, Alert("amount", account, str(error)))
        except (ApiKeyTaken, MalformedReconcileState, MalformedAccount) as error:
            return _refused(account, Alert("policy", account, str(error)))
        except Fenced as error:
            return Outcome(account, "fenced", str(error), is_final=False)
        except LagoError as error:
            log.warning("account not read", account=account, reason=str(error))
            return Outcome(account, "unavailable", str(error), is_final=not error.transient)
        except LedgerUnavailable as error:
            log.warning("account not loaded", account=account, reason=str(error))
            return Outcome(account, "unavailable", str(error), is_final=False)

    async def _load_from_lago(
        self, account: str, token: int | None, fingerprint: str | None, thorough: bool
    ) -> Outcome:
        saved = await self.reconcile_state(account)
        state = await self._rolled_over(account)
        reading = await self._read(account, state, saved, thorough)
        try:
            return await self._load_reading(reading, state, saved, token, fingerprint)
        except (BillingRefused, PriceError, LoadRefused, ApiKeyTaken):
            await self._keep_refused(account, saved, reading)
            raise

    async def _load_reading(
        self,
        reading: AccountReading,
        state: AccountState,
        saved: ReconcileState,
        token: int | None,
        fingerprint: str | None,
    ) -> Outcome:
        account, before = reading.account, state
        for _ in range(ROUNDS_MAX):
            now_ms = await self._loader.now_ms()
            desired = desired_state(reading, state, saved, self._settings, now_ms)
            if desired.period_ends:
                at_ms = now_ms // 1000 * 1000 + 1000
                for ending in desired.period_ends:
                    await self._loader.end_period(
                        account,
                        at_ms,
                        ending.next_ends_ms,
                        token,
                        subscription=ending.subscription,
                        close=ending.close,
                    )
                await self._sleep_until(at_ms)
            elif desired.spec is None:
                await self._mark_absent(account, saved, fingerprint)
                return Outcome(account, "absent", desired.why, desired=desired, before=before, alerts=desired.alerts)
            else:
                try:
                    await self._load(desired, token)
                except PeriodMoved:
                    pass
                else:
                    await self._keep(desired, saved, fingerprint)
                    if not reading.is_stable:
                        await self.schedule_reload(f"account:{account}", now_ms + RETRY_MS)
                    after = await self._rolled_over(account)
                    return Outcome(account, "loaded", "", True, desired, before, after, desired.alerts)
            state = await self._rolled_over(account)
        return Outcome(account, "unavailable", "its period kept changing while it was loaded", is_final=False)

    async def _load(self, desired: DesiredState, token: int | None) -> None:
        spec = desired.spec
        assert spec is not None
        counted = dict(desired.counted)
        for each in spec.subscriptions:
            if desired.period_starts_ms is not None or self._counts is None or not each.prices:
                continue
            # New to the ledger, or lost by it: OpenMeter may have counted more than has reached Lago.
            start_ms = each.period.at(0).start_ms
            try:
                metered = await self._counts(spec.id, tuple(each.prices), start_ms, await self._loader.now_ms())
            except CountsUnavailable as error:
                log.warning(
                    "cannot read earlier usage from openmeter, lago's figures are used alone",
                    account=spec.id,
                    reason=str(error),
                )
            else:
                counted |= {metric: max(units, counted.get(metric, 0)) for metric, units in metered.items() if units}
        await self._loader.load(
            spec, period_starts_ms=desired.period_starts_ms, fence=token, counted=counted, keep_operator_status=True
        )

    async def _keep(self, desired: DesiredState, saved: ReconcileState, fingerprint: str | None) -> None:
        """The reconcile state first, then the ledger's records of what it now has: a crash between keeps both."""
        kept = desired.reconcile_state if fingerprint is None else desired.reconcile_state.with_fingerprint(fingerprint)
        fields = kept.fields()
        gone = saved.fields().keys() - fields.keys()
        key = self._keys.billing(desired.account)
        try:
            await set_fields(self._client, key, fields)
            if gone:
                await self._client.hdel(key, *gone)
            await self._client.delete(self._keys.absent(desired.account))
            for at_ms in desired.reload_at_ms:
                await self.schedule_reload(f"account:{desired.account}", at_ms)
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error
        await self._loader.forget_closed(desired.account, desired.forget)

    async def _keep_refused(self, account: str, saved: ReconcileState, reading: AccountReading) -> None:
        """Lago has answered, so the funds in force are no older than this; every sweep looks at the account again."""
        if not saved.came_from_lago or saved.last is None:
            return
        last = replace(saved.last, read_at_ms=reading.read_at_ms, fingerprint="")
        try:
            await set_fields(
                self._client, self._keys.billing(account), {"last": replace(saved, last=last).fields()["last"]}
            )
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error

    async def schedule_reload(self, name: str, at_ms: int) -> None:
        """Request a reload at an instant. Raises what redis-py raises."""
        await self._reload_requests.schedule(name, at_ms)

    async def reconcile_state(self, account: str) -> ReconcileState:
        """The saved state of an account. Raises ``LedgerUnavailable``, ``MalformedReconcileState``."""
        try:
            fields = await self._client.hgetall(self._keys.billing(account))
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error
        return decode_reconcile_state(cast("Mapping[bytes, bytes]", fields))

    async def reconcile_states(self, accounts: Sequence[str]) -> list[ReconcileState | MalformedReconcileState]:
        """The saved states of accounts, with one round trip. Raises ``LedgerUnavailable``."""
        try:
            keys = [self._keys.billing(account) for account in accounts]
            replies = await call_each(self._client, [Call(key, ("HGETALL", key)) for key in keys])
            raise_first(replies)
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error
        return [_decoded(reply) for reply in replies]

    async def _read(self, account: str, state: AccountState, saved: ReconcileState, thorough: bool) -> AccountReading:
        current = [(each.start_ms, each.name) for each in state.subscriptions] if state.version > 0 else []
        reading = await read_account(
            self._lago,
            account,
            await self._default_taxes(),
            await self._loader.now_ms(),
            saved.oldest_ms(current),
            with_transactions=thorough,
            rounded_metrics=self._rounded_metrics,
            credits=self.credits,
            listed_values=self._listed_values,
        )
        if not lists_all_values(reading):
            # A billable metric may have got its filters, or a plan its metric, since it was read.
            self._taxes_until_s = 0.0
            await self._default_taxes()
            reading = replace(reading, listed_values=self._listed_values)
        return reading

    async def _rolled_over(self, account: str) -> AccountState:
        state = await self._loader.state(account)
        return state.rolled_over(await self._loader.now_ms()) if state.version > 0 else state

    async def _default_taxes(self) -> tuple[Tax, ...]:
        async with self._reading_taxes:  # accounts that are read at once ask once
            if time.monotonic() >= self._taxes_until_s:
                taxes = await self._lago.taxes()
                self._taxes = tuple(tax for tax in taxes if tax.is_default or tax.billing_entities)
                metrics = await self._lago.billable_metrics()
                self._rounded_metrics = frozenset(each.code for each in metrics if each.rounds_units)
                self._listed_values = {each.code: each.filters for each in metrics if each.filters}
                self._taxes_until_s = time.monotonic() + TAXES_KEPT_S
        return self._taxes

    async def _mark_absent(self, account: str, saved: ReconcileState, fingerprint: str | None) -> None:
        try:
            await self._client.set(self._keys.absent(account), "1", ex=self._settings.reconcile.absent_s)
            if fingerprint is not None:
                # A customer of the bank who subscribes to nothing is not read again in every sweep.
                last = LastReading(await self._loader.now_ms(), Decimal(0), ABSENT, fingerprint)
                fields = replace(saved, last=last).fields()
                await set_fields(self._client, self._keys.billing(account), {"last": fields["last"]})
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error

    async def _wait_for(self, at_ms: int) -> None:
        while (left_ms := at_ms - await self._loader.now_ms()) > 0:
            await asyncio.sleep(left_ms / 1000)


def _decoded(reply: Any) -> ReconcileState | MalformedReconcileState:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    try:
        return decode_reconcile_state(dict(pairs))
    except MalformedReconcileState as error:
        return error


def _refused(account: str, alert: Alert) -> Outcome:
    return Outcome(account, "refused", alert.message, alerts=(alert,))
