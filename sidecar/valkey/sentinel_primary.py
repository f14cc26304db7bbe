"""Who the primary of a service is, as Sentinels tell it. Of several that disagree the newest configuration counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sidecar.valkey.client_options import TopologyError
from sidecar.valkey.inquiries import Inquiries
from sidecar.valkey.resp import LedgerConnectionError, Reply, ReplyError, ServerAddress
from sidecar.valkey.server_addresses import ServerAddresses
from sidecar.valkey.url import Address, Sentinel

OLDER_MAX: Final = 5
"""After so many answers in a row that are all older than what is known, they are believed: the Sentinels were set up
anew. One that is cut off from the others tells of the primary that was, but not it alone is asked."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one Sentinel says. ``epoch``: of its configuration; ``is_up``: it does not think the primary down."""

    address: Address
    epoch: int
    is_up: bool


class SentinelPrimary:
    """What is known of the primary. ``on_change`` is called when its address becomes another one.

    Raises:
        TopologyError: TLS files cannot be used.
    """

    def __init__(self, topology: Sentinel) -> None:
        self.topology = topology
        self.address: Address | None = None
        self.on_change: Callable[[], None] | None = None
        self._epoch = -1
        self._older = 0
        self._sentinels = ServerAddresses(topology.tls, topology.sentinel_credentials)

    def __repr__(self) -> str:
        return f"SentinelPrimary({self.topology.service} at {self.address}, epoch {self._epoch})"

    def inquiries(self, timeout_s: float) -> Inquiries:
        """Connections to the Sentinels."""
        return Inquiries(self._sentinels, timeout_s)

    def sentinel(self, where: Address) -> ServerAddress:
        """How to enter one of the Sentinels."""
        return self._sentinels.of(where)

    def is_current(self, host: str, port: int) -> bool:
        """Whether this is the primary, as far as is known. True while nothing is."""
        return self.address is None or self.address == Address(host, port)

    async def ask(self, inquiries: Inquiries, sentinel: Address) -> Told:
        """What this Sentinel says now.

        Raises:
            LedgerConnectionError: it cannot be reached.
            TopologyError: it knows no such service, or refuses to answer.
        """
        service = self.topology.service.encode()
        # In this order: while a failover goes on the address may be newer than the epoch, but never older.
        details, address = await inquiries.ask(
            sentinel, (b"SENTINEL", b"MASTER", service), (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)
        )
        return self._told(details, address, sentinel)

    def _told(self, details: Reply, address: Reply, sentinel: Address) -> Told:
        for reply in (address, details):
            if isinstance(reply, ReplyError):
                raise TopologyError(f"{sentinel}: {reply}")
        if not isinstance(address, list) or len(address) != 2 or not isinstance(details, list):
            raise TopologyError(f"{sentinel}: it does not know {self.topology.service!r}")
        fields = dict(zip(details[::2], details[1::2], strict=False))
        flags = set(fields.get(b"flags", b"").split(b","))
        where = Address(address[0].decode(), int(address[1]))
        return Told(where, int(fields.get(b"config-epoch", 0)), not flags & {b"s_down", b"o_down"})

    def note(self, told: Told) -> None:
        """Takes an answer over unless it is older than what is known."""
        if told.epoch < self._epoch:
            self._older += 1
            if self._older < OLDER_MAX:
                return
        self._older = 0
        self._epoch = told.epoch
        before, self.address = self.address, told.address
        if before not in (None, told.address) and self.on_change is not None:
            self.on_change()

    async def find(self, timeout_s: float) -> Address:
        """Asks all Sentinels at once, and answers with the first that is up to date.

        Raises:
            TopologyError: no Sentinel can be reached, or none knows a primary that is up.
        """
        with self.inquiries(timeout_s) as inquiries:
            waiting = {
                asyncio.ensure_future(self.ask(inquiries, sentinel)): sentinel for sentinel in self.topology.sentinels
            }
            failures: list[str] = []
            older: list[Told] = []
            try:
                while waiting:
                    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        sentinel = waiting.pop(task)
                        try:
                            told = task.result()
                        except (LedgerConnectionError, TopologyError) as error:
                            failures.append(str(error))
                            continue
                        if not told.is_up:
                            failures.append(f"{sentinel}: {told.address} is down")
                        elif told.epoch < self._epoch and told.address != self.address:
                            older.append(told)
                        else:
                            self.note(told)
                            return told.address
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
        if older:
            newest = max(older, key=lambda told: told.epoch)
            self.note(newest)
            return newest.address
        hosts = ", ".join(map(str, self.topology.sentinels))
        raise TopologyError(
            f"no primary of {self.topology.service!r} is known to the Sentinels {hosts}: {'; '.join(failures)}"
        )
