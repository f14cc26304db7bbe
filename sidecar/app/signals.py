"""What a process is told from outside: to end, or to serve no new clients.

A signal never ends a process in the middle of something: what it has started (an embedded Valkey, a directory for a
while) would stay for ever. It cancels the work, which takes down what it has built, and then the process ends by the
signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is what a terminal sends that is closed."""
PATIENCE_S: Final = 10.0
"""How long a cancelled process may take down what it has built. A further signal then ends it as by default."""


class Stop(asyncio.Event):
    """Set by SIGINT, SIGTERM and SIGHUP.

    Attributes:
        at_once: whoever told it is not going to send more clients, and waits: SIGINT, which is what a terminal sends.
        drain: set by SIGUSR1, and by the end: clients should go elsewhere from now on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_once = False
        self.drain = asyncio.Event()

    def set(self) -> None:
        self.drain.set()
        super().set()


class _Ending:
    """Cancels the main task once, and remembers by which signal."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._task: asyncio.Task[object] | None = None

    def watch(self, task: asyncio.Task[object] | None) -> None:
        self.by, self._task = None, task

    def begin(self, number: signal.Signals) -> None:
        if self.by is not None or self._task is None:
            return
        self.by = number
        self._task.cancel()
        asyncio.get_running_loop().call_later(PATIENCE_S, _listen_no_more)


_ending = _Ending()


def cancel_on_signals() -> None:
    """From now on a signal that ends a process cancels the current task instead. Say :func:`end_if_told` when the loop
    has ended by that."""
    _ending.watch(asyncio.current_task())
    _listen(_ending.begin)


def stop_event() -> Stop:
    """Listens to the signals. The second of a kind does not wait for what is under way: it cancels the current task."""
    event = Stop()
    seen: set[signal.Signals] = set()
    _ending.watch(asyncio.current_task())

    def stop(number: signal.Signals) -> None:
        if number in seen:
            _ending.begin(number)
            return
        seen.add(number)
        event.at_once = event.at_once or number == signal.SIGINT
        event.set()

    _listen(stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, event.drain.set)
    return event


def end_if_told() -> None:
    """Ends the process by the signal that cancelled its work, if one did: so whoever waits for it sees why.

    Raises:
        KeyboardInterrupt: it was SIGINT.
    """
    number = _ending.by
    if number is None:
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _die(number)


def _die(number: signal.Signals) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)


def _listen(handler: Callable[[signal.Signals], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup, which means it
            loop.add_signal_handler(number, handler, number)


def _listen_no_more() -> None:
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.remove_signal_handler(number)
