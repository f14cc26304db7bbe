"""Results as files: on what they were measured, and JSON."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from loadtests.kit import machine
from loadtests.kit.processes import RigError


def measured_on(seconds: int) -> dict[str, Any]:
    """When, on what, and for how many seconds each measurement."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "python": platform.python_version(),
        "seconds": seconds,
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A result that was written before.

    Raises:
        RigError: it cannot be read, or is no result.
    """
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or not {"date", "machine", "python", "seconds", "results"} <= set(found):
        raise RigError(f"{path} is not what --json writes")
    return found


def spread(rounds: Sequence[float], form: str) -> str:
    """The median, with the lowest and the highest. ``form``: as in a format string."""
    return f"{median(rounds):{form}} ({min(rounds):{form}}–{max(rounds):{form}})"
