"""Where an API is: the addresses of its name, asked for again under traffic, and a socket to the first that answers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from time import monotonic
from typing import Any, Final

ATTEMPT_DELAY_S: Final = 0.25
"""How long one address is waited for before the next is tried beside it (RFC 8305 section 5)."""
FRESH_S: Final = 5.0
"""How old an answer of the name service may be when a connection is opened."""
SHUNNED_S: Final = 30.0
"""How long an address that did not answer is tried last."""


@dataclass(frozen=True, slots=True)
class Address:
    """``sockaddr`` is what a socket of the family connects to."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.sockaddr[0])


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Families take turns, the first one first (RFC 8305 section 4); inside of a family the order stays."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


async def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the order of the system (RFC 6724).

    Raises:
        OSError: the name is not known, or nobody could be asked.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


class Addresses:
    """The addresses of one host. An IP address is its own and only one."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._known: list[Address] = []
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._shunned: dict[Address, float] = {}
        with contextlib.suppress(ValueError):
            ip = ipaddress.ip_address(host.partition("%")[0])
            if "%" not in host:
                family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
                self._known = [Address(family, (host, port) if ip.version == 4 else (host, port, 0, 0))]
                self._asked_at = float("inf")

    def __repr__(self) -> str:
        return f"<Addresses {self._host}:{self._port} {[*map(str, self._known)]}>"

    def has(self, address: Address | None) -> bool:
        """Whether it is one of them, as far as is known."""
        return address is None or not self._known or address in self._known

    async def current(self) -> list[Address]:
        """In the order in which they should be tried. An old answer is used while a new one is on its way.

        Raises:
            OSError: the name is not known, or nobody could be asked.
        """
        self.refresh()
        if not self._known and self._asking is not None:
            await asyncio.shield(self._asking)
        now = monotonic()
        self._shunned = {address: until for address, until in self._shunned.items() if until > now}
        return sorted(interleaved(self._known), key=lambda address: address in self._shunned)

    def refresh(self) -> None:
        """Asks again in the background if the answer is old."""
        if self._asking is None and monotonic() - self._asked_at > FRESH_S:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(self._asked)

    async def _ask(self) -> None:
        self._known = await look_up(self._host, self._port)
        self._asked_at = monotonic()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # who waits for it hears it; the others go on with what is known

    def shun(self, address: Address) -> None:
        """It did not answer: the others come first for a while."""
        self._shunned[address] = monotonic() + SHUNNED_S

    async def connect(self) -> tuple[socket.socket, Address]:
        """A connected socket to the first address that answers. They are tried one after another, each with a head
        start of `ATTEMPT_DELAY_S`.

        Raises:
            OSError: none answers.
        """
        waiting = deque(await self.current())
        tasks: dict[asyncio.Task[socket.socket], Address] = {}
        fault: OSError = OSError(f"{self._host} has no address")
        try:
            while waiting or tasks:
                if waiting:
                    address = waiting.popleft()
                    tasks[asyncio.ensure_future(_open(address))] = address
                delay = ATTEMPT_DELAY_S if waiting else None
                done, _ = await asyncio.wait(tasks, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = tasks.pop(task)
                    error = task.exception()
                    if error is None:
                        self._shunned.pop(address, None)
                        for slower in tasks.values():
                            self.shun(slower)
                        return task.result(), address
                    if not isinstance(error, OSError):
                        raise error
                    fault = error
                    self.shun(address)
            raise fault
        finally:
            await _drop(tasks)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


async def _open(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _drop(tasks: dict[asyncio.Task[socket.socket], Address]) -> None:
    """Ends attempts that nobody needs any more; one may have come through at the same moment."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, socket.socket):
            outcome.close()
