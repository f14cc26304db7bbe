"""Keeps the ledger's accounts as Lago has them: answers doorbells as they ring, sweeps over everybody in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import orjson

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.metrics import LagoMetrics
from sidecar.billing.lago.models import Subscription, Wallet
from sidecar.billing.reconcile.reconcile_state import ABSENT, LastReading, decode_last
from sidecar.billing.reconcile.reconciler import Outcome, Reconciler
from sidecar.billing.reconcile.reload_requests import SWEEP, Bells, Ring
from sidecar.billing.reconcile.sweep import Fingerprints, Lists, read_lists
from sidecar.billing.settings import ReconcileSettings
from sidecar.ledger.accounts.loader import AccountLoader, LedgerUnavailable, LoadError
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.billing")

FLUSH: Final = "flush"
"""The kind of bell that asks for usage to be pushed at once: `flush` for everybody, `flush:<account>`."""

RINGS_MAX: Final = 256
REST_S_MIN, REST_S_MAX = 0.1, 2.0
"""Between two answers to one bell that goes on ringing, doubling: a storm must not become one of requests to Lago."""
QUIET_S: Final = 5.0
"""After so long without a ring a bell is answered at once again."""

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.25, 30.0
BACKOFFS_MAX: Final = 10_000
LEDGER_PAGE: Final = 500
MISSING_MAX: Final = 10
"""So many accounts may vanish from Lago at once, or half of them, whichever is more."""

JITTER: Final = 0.1
SWEEP_RETRY_S: Final = 15.0


class Directory(Lists, Protocol):
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


class Keeper:
    """``await run(token, stop)`` while this process leads."""

    def __init__(
        self,
        reconciler: Reconciler,
        lago: Directory,
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
        self._bells = Bells(client, keys)
        self._settings = settings
        self._flush = flush
        self._on_outcome = on_outcome or (lambda _: None)
        self._random = random or Random()  # noqa: S311 - spreads waits, keeps no secret
        self._metrics = reconciler.metrics
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._at_work: set[str] = set()
        self._lapsed: dict[str, int] = {}
        self._waits_s: dict[str, float] = {}
        self._rests: dict[str, tuple[float, float]] = {}
        self._sweep_wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"Keeper({len(self._at_work)} at work)"

    async def run(self, token: int, stop: asyncio.Event) -> None:
        """Until ``stop`` or cancellation, through every failure of Lago and Valkey."""
        self._lapsed.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                sweeping = tasks.create_task(self._keep_sweeping(token, stop))
                await self._answer_bells(tasks, token, stop)
                sweeping.cancel()
        finally:
            self._metrics.oldest_reading_s = 0.0  # from now on another one measures it

    # doorbells

    async def _answer_bells(self, tasks: asyncio.TaskGroup, token: int, stop: asyncio.Event) -> None:
        failing = False
        while not stop.is_set():
            notice_cancellation()
            try:
                rings = await self._bells.waiting(RINGS_MAX + len(self._at_work) + self._resting())
                self._metrics.bells_waiting = await self._bells.count() if len(rings) >= RINGS_MAX else len(rings)
                failing = False
            except CLIENT_ERRORS as error:
                if not failing:
                    log.warning("doorbells cannot be read", reason=f"{type(error).__name__}: {error}")
                failing = True
                rings = ()
            self._metrics.bells_oldest_s = max((ring.age_s for ring in rings), default=0.0)
            for ring in rings:
                if ring.name in self._at_work or self._rests.get(ring.name, (0.0, 0.0))[0] > time.monotonic():
                    continue
                if len(self._at_work) >= RINGS_MAX:
                    break
                self._at_work.add(ring.name)
                tasks.create_task(self._answer(ring, token))
            await _wait(stop, self._settings.poll_ms / 1000)

    async def _answer(self, ring: Ring, token: int) -> None:
        try:
            done = await self.attend(ring, token)
            if done:
                self._waits_s.pop(ring.name, None)
                self._rest(ring.name)
                await self._bells.answer([ring])
            else:
                await self._postpone(ring)
        except LagoError as error:
            log.warning("doorbell not answered", bell=ring.name, reason=str(error))
            # Asking again at once would come to the same; a sweep finds what there is to find.
            await (self._postpone(ring) if error.transient else self._drop(ring))
        except (LedgerUnavailable, *CLIENT_ERRORS) as error:
            log.warning("doorbell not answered", bell=ring.name, reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(BACKOFF_S_MIN)
        finally:
            self._at_work.discard(ring.name)

    def _rest(self, name: str) -> None:
        """The first answers follow one another quickly: a change in Lago rings more than once."""
        now_s = time.monotonic()
        until_s, last_s = self._rests.get(name, (0.0, 0.0))
        rest_s = min(REST_S_MAX, last_s * 2) if last_s and now_s - until_s < QUIET_S else REST_S_MIN
        self._rests[name] = (now_s + rest_s, rest_s)

    def _resting(self) -> int:
        """How many bells have been answered lately; those that have been quiet since are forgotten."""
        if len(self._rests) > BACKOFFS_MAX:
            self._rests.clear()
        now_s = time.monotonic()
        for name in [name for name, (until_s, _) in self._rests.items() if now_s - until_s > QUIET_S]:
            del self._rests[name]
        return len(self._rests)

    async def _drop(self, ring: Ring) -> None:
        with contextlib.suppress(*CLIENT_ERRORS):
            await self._bells.answer([ring])

    async def _postpone(self, ring: Ring) -> None:
        """It rings again after a while, longer each time, and does not stand in the way of others until then."""
        if len(self._waits_s) >= BACKOFFS_MAX:
            self._waits_s.clear()
        bound_s = min(BACKOFF_S_MAX, max(BACKOFF_S_MIN, self._waits_s.get(ring.name, 0.0) * 2))
        self._waits_s[ring.name] = bound_s
        with contextlib.suppress(*CLIENT_ERRORS):  # it still waits, then, and is looked at again at once
            await self._bells.postpone([ring], int(self._random.uniform(bound_s / 2, bound_s) * 1000))

    async def attend(self, ring: Ring, token: int) -> bool:
        """Do what a ring asks for; whether it is done. Raises ``LagoError``, ``LedgerUnavailable`` and what redis-py
        does."""
        kind, _, name = ring.name.partition(":")
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
                await self._bells.ring(f"account:{account}" for account in accounts)
            return True
        if ring.name == SWEEP:
            self._sweep_wanted.set()
            return True
        if kind == FLUSH:
            if self._flush is not None:
                await self._flush(token, name or None)
            return True
        log.warning("doorbell of an unknown kind", bell=ring.name[:80])
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

    async def _keep_sweeping(self, token: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            notice_cancellation()
            self._sweep_wanted.clear()
            wait_s = self._settings.interval_s * self._random.uniform(1 - JITTER, 1 + JITTER)
            # While Lago cannot be read, readings get old: a sweep that breaks off is no reason not to look at them.
            for look in (self.sweep, self.look_at_ages):
                try:
                    await look(token)
                except LagoError as error:
                    log.warning("sweep broken off", reason=str(error))
                    wait_s = min(wait_s, SWEEP_RETRY_S)
                except (LedgerUnavailable, *CLIENT_ERRORS) as error:
                    log.warning("sweep broken off", reason=f"{type(error).__name__}: {error}")
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
        prints = await read_lists(self._lago, progress)
        for account in await self._missing(prints):
            prints.by_account[account] = 0
        accounts = list(prints.by_account)
        read = failed = done = 0
        for start in range(0, len(accounts), LEDGER_PAGE):
            chunk = accounts[start : start + LEDGER_PAGE]
            lasts = await self._last_readings(chunk)
            now_ms = await self._loader.now_ms()
            due = [
                account
                for account, last in zip(chunk, lasts, strict=True)
                if everybody or self._is_due(last, prints.of(account), now_ms)
            ]
            if dry_run:
                outcomes = await asyncio.gather(*(self._preview(account) for account in due))
            else:
                outcomes = await asyncio.gather(*(self._read_in_full(a, token, prints.of(a), everybody) for a in due))
            for outcome in outcomes:
                if each is not None:
                    each(outcome)
            read += len(outcomes)
            failed += sum(outcome.result not in ("loaded", "absent") for outcome in outcomes)
            done += len(chunk)
            if progress is not None:
                progress("accounts", done, len(accounts))
        metrics, now_s = self._metrics, time.time()
        report = SweepReport(
            len(accounts), read, failed, self._lago.metrics.requests.total() - requests, time.monotonic() - started_s
        )
        metrics.sweeps += 1
        metrics.sweep_seconds, metrics.sweep_requests = report.seconds, report.requests
        metrics.sweep_accounts, metrics.sweep_read, metrics.swept_at_s = report.accounts, report.read, now_s
        log.info("swept", accounts=report.accounts, read=read, failed=failed, requests=report.requests)
        return report

    async def _read_in_full(self, account: str, token: int | None, fingerprint: str, thorough: bool) -> Outcome:
        async with self._slots:
            outcome = await self._reconciler.reconcile(account, token, fingerprint=fingerprint, thorough=thorough)
        self._on_outcome(outcome)
        return outcome

    async def _missing(self, prints: Fingerprints) -> list[str]:
        """Accounts that came from Lago and that its lists do not have any more; they are looked up one by one.

        If that is most of them, the lists are not to be believed: an empty Lago, or another one, must not close a
        bank's accounts.
        """
        missing: list[str] = []
        known = 0
        async for page in self._accounts():
            for account, last in zip(page, await self._last_readings(page), strict=True):
                if last is None or last.terms == ABSENT:
                    continue
                known += 1
                if account not in prints.by_account:
                    missing.append(account)
        if len(missing) > max(MISSING_MAX, known // 2):
            log.error("most accounts are missing in lago: is lago.url right?", known=known, missing=len(missing))
            return []
        return missing

    async def _preview(self, account: str) -> Outcome:
        async with self._slots:
            return await self._reconciler.preview(account)

    def _is_due(self, last: LastReading | None, fingerprint: str, now_ms: int) -> bool:
        if last is None or last.is_open or last.fingerprint != fingerprint:
            return True
        return now_ms - last.read_at_ms > self._settings.full_interval_s * 1000

    async def _accounts(self) -> AsyncIterator[tuple[str, ...]]:
        after = ""
        while page := await self._loader.list(after, LEDGER_PAGE):
            yield page
            after = page[-1]

    async def _last_readings(self, accounts: Iterable[str]) -> list[LastReading | None]:
        try:
            keys = [self._keys.billing(account) for account in accounts]
            rows = await call_each(self._client, [Call(key, ("HGET", key, "last")) for key in keys])
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {error}") from error
        return [_last(row) for row in rows]

    async def look_at_ages(self, token: int) -> None:
        """Measures how old the oldest reading is, and suspends whoever could not be read from Lago for longer than the
        bank allows: once for each reading, so that somebody who resumes an account by hand is obeyed.

        Raises:
            LedgerUnavailable: Valkey cannot be reached.
        """
        limit_s = self._settings.funds_age_s_max
        now_ms = await self._loader.now_ms()
        oldest_ms = now_ms
        async for page in self._accounts():
            for account, last in zip(page, await self._last_readings(page), strict=True):
                if last is None or last.terms == ABSENT:
                    continue
                oldest_ms = min(oldest_ms, last.read_at_ms)
                if limit_s is None or now_ms - last.read_at_ms <= limit_s * 1000:
                    self._lapsed.pop(account, None)
                elif self._lapsed.get(account) != last.read_at_ms and await self._lapse(account, token):
                    self._lapsed[account] = last.read_at_ms
        self._metrics.oldest_reading_s = (now_ms - oldest_ms) / 1000

    async def _lapse(self, account: str, token: int) -> bool:
        try:
            await self._loader.lapse(account, token)
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
