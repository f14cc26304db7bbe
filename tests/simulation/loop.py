"""An event loop on virtual time: when nothing is ready, it is at once as late as the next timer says.

It has no sockets. Connections are those of a simulated network (``network.py``), which the real code opens as ever, by
``loop.create_connection``. For one seed everything happens in the same order, as long as no code depends on the order
of a set of strings (PYTHONHASHSEED) or draws from ``secrets``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar
from unittest import mock

T = TypeVar("T")

START_S: Final = 1_800_001_800.0
"""Of the wall clock, since 1970: in the middle of an hour, so that a step back leaves it in the same."""
FIRST_S: Final = 1000.0
"""Of the monotonic clock; zero is what code takes for never."""
EVENTS_MAX: Final = 5_000_000
"""Rounds of the loop after which a simulation is taken for one that never ends."""


class Stalled(AssertionError):
    """Nothing is ready and no timer runs: what the simulation waits for never comes."""


class NoRealSockets(AssertionError):
    """Code wants a real connection or a real process."""


class Connector(Protocol):
    """What opens connections: a simulated network."""

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], address: str
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]: ...


class _VirtualSelector:
    """Where a loop waits for sockets. Here waiting is a jump of the clock."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        self._loop.advance(timeout_s)
        return []

    def close(self) -> None: ...


class SimulatedLoop(asyncio.BaseEventLoop):
    """``network`` opens its connections; ``seed`` is of ``random``, from which the network and the schedule draw."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(seed)
        self.network: Connector | None = None
        self.wall_offset_s = START_S - FIRST_S
        """What the wall clock is ahead of the loop's; a step of the clock changes it."""
        self.rounds = 0
        self._now_s = FIRST_S
        self._clock_resolution = 1e-9
        self._selector = _VirtualSelector(self)

    def __repr__(self) -> str:
        return f"<SimulatedLoop seed={self.seed} at={self._now_s:.6f} rounds={self.rounds}>"

    def time(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        """Seconds since 1970."""
        return self._now_s + self.wall_offset_s

    def wall_us(self) -> int:
        """Microseconds since 1970: the clock of a simulated server."""
        return round(self.wall_s() * 1e6)

    def wall_ns(self) -> int:
        return self.wall_us() * 1000

    def time_ns(self) -> int:
        return round(self._now_s * 1e9)

    def advance(self, timeout_s: float | None) -> None:
        self.rounds += 1
        if self.rounds > EVENTS_MAX:
            raise Stalled(f"seed {self.seed}: the simulation does not end")
        if timeout_s is None:
            waiting = [task for task in asyncio.all_tasks(self) if not task.done()]
            raise Stalled(f"seed {self.seed}: nothing will ever happen to {waiting}")
        if timeout_s > 0:
            timers = self._scheduled  # type: ignore[attr-defined]
            self._now_s = max(self._now_s, min(self._now_s + timeout_s, timers[0].when()))

    # What a loop over sockets has

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """At once, in order; what the caller awaits is ready."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self._connected(protocol_factory, f"{'127.0.0.1' if host == 'localhost' else host}:{port}")

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:
        return await self._connected(protocol_factory, str(path))

    async def _connected(self, factory: Any, address: str) -> Any:
        if self.network is None:
            raise NoRealSockets(f"a connection to {address}, and there is no network")
        return await self.network.connect(factory, address)

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        raise NoRealSockets("a server socket")

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        raise NoRealSockets(f"the address of {host}")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        raise NoRealSockets("a process")


class LoopClock:
    """The loop's time, for what takes a ``sidecar.basics.clock.Clock``. ``skew_s``: what this process' wall clock is
    ahead of the servers'."""

    def __init__(self, loop: SimulatedLoop, skew_s: float = 0.0) -> None:
        self._loop, self.skew_s = loop, skew_s

    def now_s(self) -> float:
        return self._loop.wall_s() + self.skew_s

    def monotonic_s(self) -> float:
        return self._loop.time()

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        return event.is_set()


@contextmanager
def _virtual_time(loop: SimulatedLoop) -> Iterator[None]:
    """``time.time()`` and its like say the loop's time, for code that asks them itself."""
    with (
        mock.patch.object(time, "time", loop.wall_s),
        mock.patch.object(time, "time_ns", loop.wall_ns),
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch.object(time, "monotonic_ns", loop.time_ns),
        mock.patch.object(time, "perf_counter", loop.time),
    ):
        yield


def simulate(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]], seed: int) -> T:
    """Runs ``main`` on a loop of its own. Tasks that it leaves are cancelled. ``random`` draws by the seed meanwhile.

    Raises:
        Stalled: it waits for what never comes.
    """
    loop = SimulatedLoop(seed)
    state = random.getstate()
    random.seed(seed)
    asyncio.set_event_loop(loop)
    try:
        with _virtual_time(loop):
            try:
                return loop.run_until_complete(main(loop))
            finally:
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
                loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        random.setstate(state)
        asyncio.set_event_loop(None)
        loop.close()


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Raises TimeoutError after so many virtual seconds."""
    async with asyncio.timeout(seconds):
        return await awaitable
