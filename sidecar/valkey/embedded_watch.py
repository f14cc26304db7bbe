"""Watching an embedded Valkey: one that ended is started again, one that hangs is killed first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.valkey.embedded_server import DamagedData, EmbeddedError, client_of, kill_server

log = get_logger("sidecar.valkey")

LOOK_S: Final = 0.5
HUNG_S: Final = 30.0
"""A server gives no answer while a disk stalls its write (``appendfsync``), or while a script runs; a stall of some
seconds happens, and to kill the server would then add the time that it needs to load its data. Nobody is served
meanwhile: a machine that stalls for half a minute is not going to recover by itself."""
RETRY_S_MIN: Final = 0.1
RETRY_S_MAX: Final = 30.0
STEADY_S: Final = 60.0
"""One that lived for that long after a start may be started again at once."""


@dataclass(slots=True)
class Counters:
    """What happened to the server, as this process saw or did it.

    Attributes:
        restarts: times that this process started it again.
        failed_restarts: times that it did not start.
        kills: times that this process killed it because it did not answer.
        cut_bytes: bytes that it cut off its data because its last command was incomplete.
        damaged: whether its data cannot be loaded. It is not started again then.
    """

    restarts: int = 0
    failed_restarts: int = 0
    kills: int = 0
    cut_bytes: int = 0
    damaged: bool = False


class Watch:
    """``start_again``: starts a server that has ended; False if somebody else does. Raises EmbeddedError."""

    def __init__(
        self,
        directory: Path,
        socket: Path,
        hung_s: float,
        counters: Counters,
        start_again: Callable[[], Awaitable[bool]],
        *,
        look_s: float = LOOK_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._directory = directory
        self._socket = socket
        self._hung_s = hung_s
        self._counters = counters
        self._start_again = start_again
        self._look_s = look_s
        self._sleep = sleep
        self._retry_s = RETRY_S_MIN
        self._steady_from_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled, or the server's data turns out to be damaged."""
        client = client_of(self._socket, self._hung_s)
        silent_since: float | None = None
        try:
            while not self._counters.damaged:
                notice_cancellation()
                await self._sleep(self._look_s)
                now = time.monotonic()
                if await _answers(client):
                    silent_since = None
                    if now > self._steady_from_s:
                        self._retry_s = RETRY_S_MIN
                elif await self._start_if_ended():
                    silent_since = None
                else:
                    silent_since = silent_since or now
                    if time.monotonic() - silent_since >= self._hung_s:
                        silent_since = None
                        self._kill()
        finally:
            await client.aclose()

    def _kill(self) -> None:
        if kill_server(self._directory):
            self._counters.kills += 1
            log.error("the embedded Valkey gave no answer and was killed", directory=str(self._directory),
                      silent_s=self._hung_s)  # fmt: skip
        else:
            log.error("the embedded Valkey gives no answer, and its process is not known",
                      directory=str(self._directory))  # fmt: skip

    async def _start_if_ended(self) -> bool:
        """Whether it had ended, and this process has started it, or tried."""
        try:
            if not await self._start_again():
                return False
        except DamagedData as error:
            self._counters.damaged = True
            self._counters.failed_restarts += 1
            log.error("the embedded Valkey cannot load its data and is not started again", error=str(error))
            return True
        except (EmbeddedError, OSError) as error:
            self._counters.failed_restarts += 1
            log.error("the embedded Valkey ended and does not start", error=reason_of(error), retry_s=self._retry_s)
        else:
            self._counters.restarts += 1
            self._steady_from_s = time.monotonic() + STEADY_S
            log.error("the embedded Valkey ended and was started again", directory=str(self._directory))
        await self._sleep(self._retry_s)
        self._retry_s = min(RETRY_S_MAX, self._retry_s * 2)
        return True


async def _answers(client: Redis) -> bool:
    """Whether the server lives: an error is an answer, too (a full disk, or it reads its data)."""
    try:
        await client.ping()
    except (ResponseError, BusyLoadingError):
        return True
    except (RedisError, OSError):
        return False
    return True
