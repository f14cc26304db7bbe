"""Watches where the primary is, or the primaries of a Cluster are, and tells when that has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

import hiredis

from sidecar.basics.backoff import Backoff
from sidecar.basics.logger import get_logger
from sidecar.valkey.client_options import TopologyError
from sidecar.valkey.cluster_primaries import ClusterPrimaries
from sidecar.valkey.resp import LedgerConnectionError, ReplyError, RespConnection, ServerAddress
from sidecar.valkey.sentinel_primary import SentinelPrimary
from sidecar.valkey.url import Address, Cluster, Sentinel, Topology

log = get_logger("sidecar.ledger")

POLL_S: Final = 1.0
ANSWER_S: Final = 2.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 5.0
MESSAGE_BYTES_MAX: Final = 1_000_000

CHANNELS: Final = (b"+switch-master", b"+promoted-slave")
"""What a Sentinel publishes when a failover is over, and, at the one that leads it, when the new primary is one."""

Known = SentinelPrimary | ClusterPrimaries | None


def known_primaries(topology: Topology) -> Known:
    """For what there is to know. None: the primary never changes. Raises `TopologyError`: TLS files cannot be used."""
    if isinstance(topology, Sentinel):
        return SentinelPrimary(topology)
    return ClusterPrimaries(topology) if isinstance(topology, Cluster) else None


class PrimaryWatch:
    """``await run()`` until it is cancelled. ``on_change`` is called without an argument, in the loop.

    Sentinels are subscribed to and polled, each on its own; the nodes of a Cluster are polled in turn. ``known`` is
    what the watch keeps up to date, shared with whoever connects; without it the watch has one of its own.
    """

    def __init__(
        self, topology: Topology, on_change: Callable[[], None], known: Known = None, *, poll_s: float = POLL_S
    ) -> None:
        self.known = known if known is not None else known_primaries(topology)
        self._on_change = on_change
        self._poll_s = poll_s
        self._failing: dict[str, bool] = {}
        if self.known is not None:
            self.known.on_change = self._changed

    def __repr__(self) -> str:
        return f"PrimaryWatch({self.known!r})"

    async def run(self) -> None:
        """Until cancelled, through every failure. Returns at once where there is nothing to watch."""
        known = self.known
        if isinstance(known, SentinelPrimary):
            async with asyncio.TaskGroup() as tasks:
                for sentinel in known.topology.sentinels:
                    tasks.create_task(self._keep_following(known, sentinel))
        elif isinstance(known, ClusterPrimaries):
            await self._follow_cluster(known)

    def _changed(self) -> None:
        known = self.known
        if isinstance(known, SentinelPrimary):
            log.warning("the primary of Valkey is another one now", primary=str(known.address))
        elif isinstance(known, ClusterPrimaries) and known.slots is not None:
            primaries = [str(each) for each in known.slots.primaries]
            log.warning("slots of the Cluster have another primary now", primaries=primaries[:20])
        try:
            self._on_change()
        except Exception:  # of whoever is told; the watch goes on
            log.exception("a change of the primary was not handled")

    def _note(self, what: str, error: Exception | None) -> None:
        """One line when somebody stops to answer, and one when it does again."""
        failing = error is not None
        if failing == self._failing.get(what, False):
            return
        self._failing[what] = failing
        if failing:
            log.warning("cannot ask where the primary is", who=what, reason=str(error)[:300])
        else:
            log.info("can ask again where the primary is", who=what)

    # Sentinel

    async def _keep_following(self, known: SentinelPrimary, sentinel: Address) -> None:
        backoff = Backoff(BACKOFF_S_MIN, BACKOFF_S_MAX, Random())  # noqa: S311  jitter, not a secret
        while True:
            try:
                await self._follow(known, sentinel, backoff)
            except (LedgerConnectionError, TopologyError) as error:
                self._note(f"Sentinel {sentinel}", error)
            except Exception:
                log.exception("watching a Sentinel failed", sentinel=str(sentinel))
            await asyncio.sleep(BACKOFF_S_MIN + backoff.next_s())

    async def _follow(self, known: SentinelPrimary, sentinel: Address, backoff: Backoff) -> None:
        with known.inquiries(ANSWER_S) as inquiries:
            subscription = await _Subscription.to(known.sentinel(sentinel), known.topology.service)
            try:
                while True:
                    subscription.told.clear()
                    known.note(await known.ask(inquiries, sentinel))
                    self._note(f"Sentinel {sentinel}", None)
                    backoff.reset()
                    if subscription.closed:
                        raise LedgerConnectionError(f"{sentinel}: the subscription was lost")
                    await _wait(subscription.told, self._poll_s)
            finally:
                subscription.close()

    # Cluster

    async def _follow_cluster(self, known: ClusterPrimaries) -> None:
        with known.inquiries(ANSWER_S / 2) as inquiries:
            while True:
                try:
                    await known.look(inquiries)
                except (LedgerConnectionError, TopologyError) as error:
                    self._note("the Cluster", error)
                except Exception:
                    log.exception("watching the Cluster failed")
                else:
                    self._note("the Cluster", None)
                await asyncio.sleep(self._poll_s)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


class _Subscription(RespConnection):
    """Sets ``told`` when a Sentinel publishes something of the service, and when the connection is lost."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__(address)
        self.told = asyncio.Event()
        self.service = b""

    @classmethod
    async def to(cls, address: ServerAddress, service: str) -> _Subscription:
        """Raises `LedgerConnectionError`: the Sentinel cannot be reached. One that does not allow it is polled only."""
        connection = await cls.open(address, timeout_s=ANSWER_S)
        assert isinstance(connection, _Subscription)
        connection.service = service.encode()
        try:
            async with asyncio.timeout(ANSWER_S):
                for channel in CHANNELS:
                    reply = await connection.call(b"SUBSCRIBE", channel)
                    if isinstance(reply, ReplyError):
                        log.warning("a Sentinel does not publish failovers to this user, it is only polled",
                                    sentinel=str(address), reason=str(reply)[:200])  # fmt: skip
                        break
        except TimeoutError:
            connection.close()
            raise LedgerConnectionError(f"{address} does not answer SUBSCRIBE") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._unread_bytes += len(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._unread_bytes = 0
                if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
                    if self.service in reply[2].split():
                        self.told.set()
                elif self._waiting:
                    self._waiting.popleft()(reply)
                else:
                    self.close()
                    return
        except hiredis.ProtocolError:
            self.close()
        if self._unread_bytes > MESSAGE_BYTES_MAX:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.told.set()
