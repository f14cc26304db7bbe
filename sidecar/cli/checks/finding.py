"""What a check found."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

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


def absent_file(config: Config, files: Mapping[str, Path | None]) -> str | None:
    """Why there is nothing to check: a gateway has none of these files, by setting, and needs none."""
    if config.upstream.url is None and not config.upstream.original_destination:
        return None
    for setting, path in files.items():
        if path is not None and not os.path.exists(path):  # Path.exists raises where a directory is closed
            return f"{setting}: {path} is not there; a control plane needs it, a gateway does not"
    return None


async def attempt(what: str, step: Check, config: Config, timeout_s: float = TIMEOUT_S * 2) -> list[Finding]:
    """The step's findings, or the one that it failed."""
    try:
        async with asyncio.timeout(timeout_s):
            return await step(config)
    except TimeoutError:
        return [Finding(what, False, f"no answer within {timeout_s:g} s")]
    except Exception as error:  # whatever goes wrong in a check is its result
        return [Finding(what, False, reason_of(error))]
