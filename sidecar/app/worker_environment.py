"""What a worker process knows of its place: its port, its socket, and that its parent lives (see `workers`)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

WORKER_VARIABLE = "QUOTA_SIDECAR_WORKER"
"""``<number>:<port>:<admin socket>``; set by the parent alone. Its name does not begin as those of
variables that are configuration do.
"""


def worker_place(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Number, port and admin socket, if this process is a worker."""
    text = environment.get(WORKER_VARIABLE)
    if text is None:
        return None
    number, port, path = text.split(":", 2)
    return int(number), int(port), path


def stop_with_parent(stop: asyncio.Event) -> None:
    """Sets ``stop`` when the parent's end of standard input closes."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop.set()

    loop.add_reader(descriptor, readable)
