"""What a check found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sidecar.app.configuration import Config
from sidecar.basics.fault_reasons import reason_of

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """``ok`` is None for a warning: it works, but may not be what is wanted."""

    what: str
    ok: bool | None
    detail: str


Check = Callable[[Config], Awaitable[list[Finding]]]


async def attempt(what: str, step: Check, config: Config) -> list[Finding]:
    """The step's findings, or the one that it failed."""
    try:
        async with asyncio.timeout(TIMEOUT_S * 2):
            return await step(config)
    except TimeoutError:
        return [Finding(what, False, f"no answer within {TIMEOUT_S * 2:g} s")]
    except Exception as error:  # whatever goes wrong in a check is its result
        return [Finding(what, False, reason_of(error))]
