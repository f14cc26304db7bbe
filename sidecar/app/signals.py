"""What a process is told from outside: to end, or to serve no new clients."""

from __future__ import annotations

import asyncio
import signal


class Stop(asyncio.Event):
    """Set by SIGINT and SIGTERM.

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


def stop_event() -> Stop:
    """Listens to the signals. A second SIGINT or SIGTERM ends the process at once, as by default."""
    loop = asyncio.get_running_loop()
    event = Stop()

    def stop(number: signal.Signals) -> None:
        event.at_once = event.at_once or number == signal.SIGINT
        event.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGUSR1, event.drain.set)
    return event
