"""Keeps the ledger's accounts as Lago has them: handles reload requests as they come, and sweeps over all accounts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import orjson

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.metrics import LagoMetrics
from sidecar.billing.lago.models import Subscription, Wallet
from sidecar.billing.reconcile.reconcile_state import ABSENT, LastReading, decode_last
from sidecar.billing.reconcile.reconciler import Outcome, Reconciler
from sidecar.billing.reconcile.reload_requests import SWEEP, ReloadRequest, ReloadRequests
from sidecar.billing.reconcile.sweep import Fingerprints, Lists, read_lists
from sidecar.billing.settings import ReconcileSettings
from sidecar.controlplane.reading_ages import ReadingAges
from sidecar.ledger.accounts.loader import AccountLoader, LedgerUnavailable, LoadError
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.billing")

FLUSH: Final = "flush"
"""The kind of reload request that asks for usage to be pushed at once: `flush` for all accounts, `flush:<account>`."""

REQUESTS_MAX: Final = 256
COOLDOWN_S_MIN, COOLDOWN_S_MAX = 0.1, 2.0
"""Between two reloads of one name that is requested again and again, doubling: a storm of webhooks must not become a
storm of calls to Lago."""
QUIET_S: Final = 5.0
"""After so long without a request the next one is handled at once again."""

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.25, 30.0
BACKOFFS_MAX: Final = 10_000
LEDGER_PAGE: Final = 500
MISSING_MAX: Final = 10
"""Accounts that may vanish from Lago at once, or half of them, whichever is more."""

JITTER: Final = 0.1
SWEEP_RETRY_S: Final = 15.0


class LagoReader(Lists, Protocol):
    """The part of ``LagoClient`` that is needed here."""

    async def wallet(self, lago_id: str) -> Wallet | None: ...

    async def subscription(self, external_id: str) -> Subscription | None: ...

    @property
    def metrics(self) -> LagoMetrics: ...


@dataclass(frozen=True, slots=True)
class SweepReport:
    """``accounts`` looked at, ``read`` of them in full, ``failed`` of these not loaded; ``requests`` to Lago."""

    accounts: int
    read: int
    failed: int
    requests: int
    seconds: float


class ReconcileLoop:
    """``await run(token, stop)`` while this process leads."""

    def __init__(
        self,
        reconciler: Reconciler,
        lago: LagoReader,
        loader: AccountLoader,
        client: Client,
        keys: Keys,
        settings: ReconcileSettings,
        *,
        random: Random | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        flush: Callable[[int, str | None], Awaitable[None]] | None = None,
    ) -> None:
        self._reconciler = reconciler
        self._lago = lago
        self._loader = loader
        self._client = client
        self._keys = keys
        self._reload_requests = ReloadRequests(client, keys)
        self._settings = settings
        self._flush = flush
        self._on_outcome = on_outcome or (lambda _: None)
        self._random = random or Random()  # noqa: S311 - spreads waits, keeps no secret
        self._metrics = reconciler.metrics
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._in_progress: set[str] = set()
        self._ages = ReadingAges(settings.funds_age_s_max)
        self._planned_wait_ms = 0
        self._backoffs_s: dict[str, float] = {}
        self._cooldowns: dict[str, tuple[float, float]] = {}
        self._sweep_wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"ReconcileLoop({len(self._in_progress)} in progress)"

    async def run(self, token: int, stop: asyncio.Event) -> None:
        """Until ``stop`` or cancellation, through every failure of Lago and Valkey."""
        self._ages.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                sweeping = tasks.create_task(self._run_sweeps(token, stop))
                await self._handle_requests(tasks, token, stop)
                sweeping.cancel()
        finally:
            self._metrics.oldest_reading_s = 0.0  # from now on another one measures it

    # reload requests

    async def _handle_requests(self, tasks: asyncio.TaskGroup, token: int, stop: asyncio.Event) -> None:
        failing = False
        while not stop.is_set():
            notice_cancellation()
            try:
                limit = REQUESTS_MAX + len(self._in_progress) + self._cooling_down()
                requests = await self._reload_requests.waiting(limit)
                count = await self._reload_requests.count() if len(requests) >= REQUESTS_MAX else len(requests)
                self._metrics.reload_requests_waiting = count
                failing = False
            except CLIENT_ERRORS as error:
                if not failing:
                    log.warning("cannot read reload requests", reason=reason_of(error))
                failing = True
                requests = ()
            self._metrics.reload_requests_oldest_s = max((request.age_s for request in requests), default=0.0)
            for request in requests:
                cooldown_until_s = self._cooldowns.get(request.name, (0.0, 0.0))[0]
                if request.name in self._in_progress or cooldown_until_s > time.monotonic():
                    continue
                if len(self._in_progress) >= REQUESTS_MAX:
                    break
                self._in_progress.add(request.name)
                tasks.create_task(self._handle(request, token))
            await _wait(stop, self._settings.poll_ms / 1000)

    async def _handle(self, request: ReloadRequest, token: int) -> None:
        try:
            done = await self.handle(request, token)
            if done:
                self._backoffs_s.pop(request.name, None)
                self._start_cooldown(request.name)
                await self._reload_requests.complete([request])
            else:
                await self._postpone(request)
        except LagoError as error:
            log.warning("reload request not handled", request=request.name, reason=str(error))
            # Asking again at once would come to the same; a sweep finds what there is to find.
            await (self._postpone(request) if error.transient else self._drop(request))
        except (LedgerUnavailable, *CLIENT_ERRORS) as error:
            log.warning("reload request not handled", request=request.name, reason=reason_of(error))
            await asyncio.sleep(BACKOFF_S_MIN)
        finally:
            self._in_progress.discard(request.name)

    def _start_cooldown(self, name: str) -> None:
        """The first cooldown is short: one change in Lago requests more than one reload."""
        now_s = time.monotonic()
        until_s, last_s = self._cooldowns.get(name, (0.0, 0.0))
        cooldown_s = min(COOLDOWN_S_MAX, last_s * 2) if last_s and now_s - until_s < QUIET_S else COOLDOWN_S_MIN
        self._cooldowns[name] = (now_s + cooldown_s, cooldown_s)

    def _cooling_down(self) -> int:
        """How many requests were handled lately; names that have been quiet since are forgotten."""
        if len(self._cooldowns) > BACKOFFS_MAX:
            self._cooldowns.clear()
        now_s = time.monotonic()
        for name in [name for name, (until_s, _) in self._cooldowns.items() if now_s - until_s > QUIET_S]:
            del self._cooldowns[name]
        return len(self._cooldowns)

    async def _drop(self, request: ReloadRequest) -> None:
        with contextlib.suppress(*CLIENT_ERRORS):
            await self._reload_requests.complete([request])

    async def _postpone(self, request: ReloadRequest) -> None:
        """It is made again after a while, longer each time, and does not stand in the way of others until then."""
        if len(self._backoffs_s) >= BACKOFFS_MAX:
            self._backoffs_s.clear()
        bound_s = min(BACKOFF_S_MAX, max(BACKOFF_S_MIN, self._backoffs_s.get(request.name, 0.0) * 2))
        self._backoffs_s[request.name] = bound_s
        with contextlib.suppress(*CLIENT_ERRORS):  # it still waits, then, and is looked at again at once
            await self._reload_requests.postpone([request], int(self._random.uniform(bound_s / 2, bound_s) * 1000))

    async def handle(self, request: ReloadRequest, token: int) -> bool:
        """Do what a request asks for; whether it is done.

        Raises:
            LagoError, LedgerUnavailable, and what redis-py raises.
        """
        kind, _, name = request.name.partition(":")
        if kind == "account":
            return (await self._reconcile(name, token)).is_final
        if kind == "wallet":
            wallet = await self._lago.wallet(name)
            return wallet is None or (await self._reconcile(wallet.customer, token)).is_final
        if kind == "subscription":
            subscription = await self._lago.subscription(name)
            return subscription is None or (await self._reconcile(subscription.customer, token)).is_final
        if kind == "plan":
            async for accounts in self._subscribers(name):
                await self._reload_requests.add(f"account:{account}" for account in accounts)
            return True
        if request.name == SWEEP:
            self._sweep_wanted.set()
            return True
        if kind == FLUSH:
            if self._flush is not None:
                await self._flush(token, name or None)
            return True
        log.warning("reload request of an unknown kind", request=request.name[:80])
        return True

    async def _reconcile(self, account: str, token: int) -> Outcome:
        async with self._slots:
            outcome = await self._reconciler.reconcile(account, token)
        self._on_outcome(outcome)
        return outcome

    async def _subscribers(self, plan_code: str) -> AsyncIterator[list[str]]:
        page: int | None = 1
        while page is not None:
            answer = await self._lago.subscriptions_page(page, statuses=("active",), plan_code=plan_code)
            yield [each.customer for each in answer.items]
            page = answer.next_page if answer.next_page is None or answer.next_page > page else None

    # sweeps

    async def _run_sweeps(self, token: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            notice_cancellation()
            self._sweep_wanted.clear()
            wait_s = self._settings.interval_s * self._random.uniform(1 - JITTER, 1 + JITTER)
            self._planned_wait_ms = int(wait_s * 1000)
            # While Lago cannot be read, readings get old: a sweep that breaks off is no reason not to look at them.
            for look in (self.sweep, self.check_reading_ages):
                try:
                    await look(token)
                except LagoError as error:
                    log.warning("sweep aborted", reason=str(error))
                    wait_s = min(wait_s, SWEEP_RETRY_S)
                except (LedgerUnavailable, *CLIENT_ERRORS) as error:
                    log.warning("sweep aborted", reason=reason_of(error))
                    wait_s = min(wait_s, SWEEP_RETRY_S)
            await _wait(self._sweep_wanted, wait_s)

    async def sweep(
        self,
        token: int | None,
        *,
        everybody: bool = False,
        dry_run: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        each: Callable[[Outcome], None] | None = None,
    ) -> SweepReport:
        """Look at every customer of Lago and every account of the ledger once.

        Raises:
            LagoError: a list cannot be read.
            LedgerUnavailable: Valkey cannot be reached.
        """
        started_s, requests = time.monotonic(), self._lago.metrics.requests.total()
        if not dry_run:
            await self._loader.open_lost_partitions()
        fingerprints = await read_lists(self._lago, progress)
        self._reconciler.credits.accounts = frozenset(fingerprints.credited)
        fingerprints.settings = self._reconciler.mapping_number
        missing = await self._missing(fingerprints)
        for account in missing or ():
            fingerprints.by_account[account] = 0
        accounts = list(fingerprints.by_account)
        read = failed = done = 0
        unread: set[str] = set()
        for start in range(0, len(accounts), LEDGER_PAGE):
            chunk = accounts[start : start + LEDGER_PAGE]
            lasts = await self._last_readings(chunk)
            now_ms = await self._loader.now_ms()
            due = [
                account
                for account, last in zip(chunk, lasts, strict=True)
                if everybody or self._is_due(last, fingerprints.of(account), now_ms)
            ]
            if dry_run:
                outcomes = await asyncio.gather(*(self._preview(account) for account in due))
            else:
                outcomes = await asyncio.gather(
                    *(self._read_in_full(a, token, fingerprints.of(a), everybody) for a in due)
                )
            for outcome in outcomes:
                if each is not None:
                    each(outcome)
            read += len(outcomes)
            failed += sum(outcome.result not in ("loaded", "absent") for outcome in outcomes)
            unread |= {outcome.account for outcome in outcomes if outcome.result == "unavailable"}
            done += len(chunk)
            if progress is not None:
                progress("accounts", done, len(accounts))
        if missing is not None and not dry_run:
            self._ages.confirm(unread, await self._loader.now_ms() + self._planned_wait_ms)
        metrics, now_s = self._metrics, time.time()
        report = SweepReport(
            len(accounts), read, failed, self._lago.metrics.requests.total() - requests, time.monotonic() - started_s
        )
        metrics.sweeps += 1
        metrics.sweep_seconds, metrics.sweep_requests = report.seconds, report.requests
        metrics.sweep_accounts, metrics.sweep_read, metrics.swept_at_s = report.accounts, report.read, now_s
        log.info("sweep completed", accounts=report.accounts, read=read, failed=failed, requests=report.requests)
        return report

    async def _read_in_full(self, account: str, token: int | None, fingerprint: str, thorough: bool) -> Outcome:
        async with self._slots:
            outcome = await self._reconciler.reconcile(account, token, fingerprint=fingerprint, thorough=thorough)
        self._on_outcome(outcome)
        return outcome

    async def _missing(self, fingerprints: Fingerprints) -> list[str] | None:
        """Accounts that came from Lago and that its lists do not have any more; they are looked up one by one.

        None if that is most of them. Then the lists are not to be believed: an empty Lago, or another one, must not
        close a bank's accounts.
        """
        missing: list[str] = []
        known = 0
        async for page in self._accounts():
            for account, last in zip(page, await self._last_readings(page), strict=True):
                if last is None or last.policy == ABSENT:
                    continue
                known += 1
                if account not in fingerprints.by_account:
                    missing.append(account)
        if len(missing) > max(MISSING_MAX, known // 2):
            log.error("most accounts are missing in lago: is lago.url right?", known=known, missing=len(missing))
            return None
        return missing

    async def _preview(self, account: str) -> Outcome:
        async with self._slots:
            return await self._reconciler.preview(account)

    def _is_due(self, last: LastReading | None, fingerprint: str, now_ms: int) -> bool:
        if last is None or last.is_open or last.fingerprint != fingerprint:
            return True
        return now_ms - last.read_at_ms > self._settings.full_interval_s * 1000

    async def _accounts(self) -> AsyncIterator[tuple[str, ...]]:
        async for page in self._loader.pages(LEDGER_PAGE, reachable=True):
            yield page

    async def _last_readings(self, accounts: Iterable[str]) -> list[LastReading | None]:
        try:
            keys = [self._keys.billing(account) for account in accounts]
            rows = await call_each(self._client, [Call(key, ("HGET", key, "last")) for key in keys])
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error
        return [_last(row) for row in rows]

    async def check_reading_ages(self, token: int) -> None:
        """Measures how old the oldest reading is, and suspends whoever could not be read from Lago for longer than the
        bank allows: once for each reading, so that somebody who resumes an account by hand is obeyed.

        Raises:
            LedgerUnavailable: Valkey cannot be reached.
        """
        now_ms = await self._loader.now_ms()
        oldest_ms = now_ms
        async for page in self._accounts():
            for account, last in zip(page, await self._last_readings(page), strict=True):
                if last is None or last.policy == ABSENT:
                    continue
                oldest_ms = min(oldest_ms, last.read_at_ms)
                if self._ages.is_too_old(account, last.read_at_ms, now_ms) and not await self._suspend(account, token):
                    self._ages.failed(account)
        self._metrics.oldest_reading_s = (now_ms - oldest_ms) / 1000

    async def _suspend(self, account: str, token: int) -> bool:
        try:
            await self._loader.suspend_until_loaded(account, token)
        except LoadError as error:
            log.warning("account not suspended", account=account, reason=str(error))
            return False
        log.warning("account suspended: its funds are too old", account=account)
        return True


def _last(row: object) -> LastReading | None:
    if not isinstance(row, bytes):
        return None
    try:
        return decode_last(orjson.loads(row))
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return None


def notice_cancellation() -> None:
    """Before Python 3.12 redis-py may swallow a cancellation; a leader that was cancelled must not go on.

    Raises:
        CancelledError: this task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
