"""Results as files: on what they were measured, and JSON."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import orjson


def measured_on(seconds: int) -> dict[str, Any]:
    """When, on what, and for how many seconds each measurement."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": platform.python_version(),
        "seconds": seconds,
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")


def spread(rounds: Sequence[float], form: str) -> str:
    """The median, with the lowest and the highest. ``form``: as in a format string."""
    return f"{median(rounds):{form}} ({min(rounds):{form}}–{max(rounds):{form}})"
