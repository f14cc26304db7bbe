"""The ledger as a gateway process sees it: hold, settle, release."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.account_views import AccountViews
from sidecar.ledger.client.link import Link
from sidecar.ledger.client.link_settings import LedgerCounters, LinkSettings
from sidecar.ledger.client.outcomes import Event, Hold, IdempotencyKey
from sidecar.ledger.client.sealed import SealedBatch
from sidecar.ledger.client.settled_window import SettledWindow
from sidecar.ledger.keys import Keys
from sidecar.valkey.command import bulk
from sidecar.valkey.resp import RespConnection, ServerAddress

log = get_logger("sidecar.ledger")

ACCOUNT_KEYS_MAX = 200_000
CHECKS_MAX = 3
"""How often it is looked, before this process leaves, whether a server lost what it had confirmed."""


class Endpoints(Protocol):
    """Where the partitions live. ``home_partitions``: one for a single server, all partitions for a cluster."""

    def home_partitions(self, instance: str, partitions: int) -> list[int]: ...

    async def connect(self, partition_key: str) -> RespConnection:
        """A new connection to the server that now holds ``partition_key``.

        Raises:
            LedgerConnectionError: it cannot be had.
        """
        ...

    async def connect_to(self, host: str, port: int) -> RespConnection:
        """A new connection to a server of the same cluster, which another one has named. Raises as ``connect``."""
        ...

    def watch(self, on_change: Callable[[], None]) -> Watch:
        """What keeps :meth:`is_current` up to date; it calls when a primary is another one."""
        ...

    def is_current(self, partition_key: str, address: ServerAddress) -> bool:
        """Whether this server is the primary of this key, as far as is known."""
        ...


class Watch(Protocol):
    async def run(self) -> None:
        """Until it is cancelled; returns where there is nothing to watch."""
        ...


def new_instance_id() -> str:
    """Unique for every start: a process that comes back is another instance, whose predecessor is reaped."""
    host = "".join(c for c in socket.gethostname()[:32] if c.isalnum() or c == "-") or "host"
    return f"{host}-{secrets.token_hex(6)}"


class LedgerClient:
    """One instance. Give it to a running loop with :meth:`start`, take it down with :meth:`close`."""

    def __init__(
        self, endpoints: Endpoints, keys: Keys, settings: LinkSettings | None = None, *,
        heartbeat_s: float = 1.0, instance: str | None = None, on_loss: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """``on_loss`` is called when a server's data went back: what others wrote to it is lost too."""
        self.instance = instance or new_instance_id()
        self.keys = keys
        self.counters = LedgerCounters()
        self._views = AccountViews()
        self._account_keys: dict[str, bytes] = {}
        self._endpoints = endpoints
        self._settings = settings or LinkSettings()
        self._heartbeat_s = heartbeat_s
        self.window = SettledWindow(self._settings.window_bytes)
        self._on_loss = on_loss or (lambda: None)
        self.on_late_refusal: Callable[[str, int], None] = lambda _account, _code: None
        """Told what the ledger refused when nobody waited for it any more: account and code."""
        self._links: list[Link] = []
        self._by_partition: list[Link] = []
        self._only: Link | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<LedgerClient {self.instance} {self._links!r}>"

    def start(self) -> None:
        """Connects in the background; holds are UNAVAILABLE until it has."""
        home_partitions = self._endpoints.home_partitions(self.instance, self.keys.partitions)
        self._links = [self._make_link(home_partition) for home_partition in home_partitions]
        self._only = self._links[0] if len(self._links) == 1 else None
        by_home_partition = {link.home_partition: link for link in self._links}
        self._by_partition = [self._only or by_home_partition[partition] for partition in range(self.keys.partitions)]
        for link in self._links:
            link.start()
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._beat()))
        self._tasks.append(loop.create_task(self._endpoints.watch(self._follow_primaries).run()))

    def _follow_primaries(self) -> None:
        """Takes every link off a server that is no longer its primary: what that one confirms is lost."""
        for link in self._links:
            link.leave_former_primary()

    def _make_link(self, home_partition: int) -> Link:
        anchor = self.keys.instance(home_partition, self.instance)
        return Link(
            instance=self.instance, home_partition=home_partition, keys=self.keys,
            connect=lambda: self._endpoints.connect(anchor), connect_to=self._connect_to,
            is_current=partial(self._endpoints.is_current, anchor),
            settings=self._settings, views=self._views, account_keys=self._account_key, counters=self.counters,
            window=self.window, on_loss=self._on_loss,
            on_late_refusal=lambda account, code: self.on_late_refusal(account, code),
        )  # fmt: skip

    async def _connect_to(self, host: str, port: int) -> RespConnection:
        return await self._endpoints.connect_to(host, port)

    def _account_key(self, account: str) -> bytes:
        """The keys of its state and of its hash, as two bulk strings in one."""
        key = self._account_keys.get(account)
        if key is None:
            if len(self._account_keys) >= ACCOUNT_KEYS_MAX:
                self._account_keys.clear()
            names = self.keys.state(account), self.keys.account(account)
            key = self._account_keys[account] = b"".join(bulk(name.encode()) for name in names)
        return key

    async def wait_ready(self, timeout_s: float) -> bool:
        """Until every link is registered; False if that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                for link in self._links:
                    await link.wait_ready()
        except TimeoutError:
            return False
        return True

    @property
    def is_up(self) -> bool:
        return bool(self._links) and all(link.is_up for link in self._links)

    @property
    def is_up_in_part(self) -> bool:
        """Whether some accounts can be served."""
        return any(link.is_up for link in self._links)

    @property
    def partitions_down(self) -> list[int]:
        """Home partitions whose link is down."""
        return [link.home_partition for link in self._links if not link.is_up]

    @property
    def backlog(self) -> int:
        return sum(link.backlog for link in self._links)

    def link_of(self, account: str) -> Link:
        return self._only or self._by_partition[self.keys.partition(account)]

    def hold(
        self,
        account: str,
        metric: str,
        units: int,
        callback: Callable[[Hold], None],
        key: IdempotencyKey | None = None,
    ) -> Hold:
        """Asks to reserve ``units``; ``callback`` is called once, with the decided hold, possibly before this returns.

        A caller that goes away sets ``hold.callback`` to None: what is granted after that is given back.
        """
        hold = Hold(account, metric, units, key, callback)
        (self._only or self._by_partition[self.keys.partition(account)]).hold(hold)
        return hold

    def settle(self, hold: Hold, event: Event) -> None:
        """Turns a granted hold into a charge with its usage event."""
        (self._only or self._by_partition[self.keys.partition(hold.account)]).settle(hold, event)

    def release(self, hold: Hold, unpaid: bool = False) -> None:
        """Gives a granted hold back. ``unpaid``: the API answered the request, and the answer costs nothing; of such
        answers an account has so many a second (``LinkSettings.unpaid_per_second``)."""
        (self._only or self._by_partition[self.keys.partition(hold.account)]).release(hold, unpaid)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for result in await asyncio.gather(*(link.heartbeat() for link in self._links), return_exceptions=True):
                if isinstance(result, Exception):  # without heartbeats the instance would be taken for dead
                    log.error("a heartbeat failed", error=reason_of(result)[:200])

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every operation is known to be done; False if that takes longer."""
        return all(await asyncio.gather(*(link.drain(timeout_s) for link in self._links)))

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Waits until all operations are known to be done, leaves the ledger, closes. False: some were not in time."""
        drained, verified = await self._drain_and_check(timeout_s)
        if not drained:
            log.error("stopped with operations that Valkey has not confirmed", operations=self.backlog)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if drained and verified:
            await asyncio.gather(*(link.leave() for link in self._links))
        await asyncio.gather(*(link.close() for link in self._links))
        return drained

    async def _drain_and_check(self, timeout_s: float) -> tuple[bool, bool]:
        """Whether every operation is known to be done, and whether the servers still have them all: afterwards nobody
        could offer again what they lost."""
        for _ in range(CHECKS_MAX):
            if not await self.drain(timeout_s):
                return False, False
            losses = self.counters.losses
            await asyncio.gather(*(link.check() for link in self._links))
            if self.counters.losses == losses:
                return not self.backlog, all(link.is_connected and link.epoch for link in self._links)
        return not self.backlog, False

    @property
    def links(self) -> Sequence[Link]:
        """One, or one for each partition of a cluster."""
        return self._links

    def seal_waiting(self) -> list[SealedBatch]:
        """After a :meth:`close` that was False: all charges that Valkey has not confirmed, for whoever can keep them.
        Some may be done; offered again under their numbers they are done once."""
        return [sealed for link in self._links for sealed in link.seal_waiting()]
