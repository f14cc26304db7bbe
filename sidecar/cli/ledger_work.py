"""What the commands of ``sidecar ledger`` share: progress as lines, and settings that are not where the ledger is."""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from sidecar.app.configuration import load_config
from sidecar.cli.output import errors, run_async, say_error
from sidecar.ledger.settings import LedgerSettings

T = TypeVar("T")

EVERY_S: Final = 2.0
"""Time between two lines of progress of the same thing."""


class ProgressLines:
    """Prints to standard error how far the work has come: a line every few seconds, and one when a part is done."""

    def __init__(self) -> None:
        self._what = ""
        self._waiting = ""
        self._printed_s = 0.0

    def __repr__(self) -> str:
        return f"ProgressLines({self._what})"

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what != self._what:
            self.close()
            self._what, self._printed_s = what, time.monotonic()
        self._waiting = f"{what}: {done:,}" + (f" of {total:,}" if total is not None else "")
        if time.monotonic() - self._printed_s >= EVERY_S:
            self.close()

    def close(self) -> None:
        """Prints what is not printed yet."""
        if self._waiting:
            errors().print(self._waiting, markup=False, soft_wrap=True)
        self._waiting, self._printed_s = "", time.monotonic()


def instance_ttl_ms(config: Path | None, valkey: str | None) -> int:
    """Age of a heartbeat at which a gateway counts as dead: the configuration's, or the usual one with ``--valkey``.

    Raises:
        ConfigError: the configuration is wrong.
    """
    if valkey is not None:
        return LedgerSettings().instance_ttl_ms
    return load_config(config, os.environ).ledger.instance_ttl_ms


def run_resumable(work: Coroutine[Any, Any, T], how: str) -> T:
    """Runs it. ``how``: what to do after Ctrl-C, which this says."""
    try:
        return run_async(work)
    except KeyboardInterrupt:
        say_error(f"interrupted: {how}")
        raise
