"""Cancellations that got lost."""

from __future__ import annotations

import asyncio


def notice_cancellation() -> None:
    """Raises ``CancelledError`` if the running task was cancelled and goes on: before Python 3.12 ``asyncio.wait_for``,
    in which redis-py writes, may swallow a cancellation. A loop that may be cancelled asks in each of its rounds."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
