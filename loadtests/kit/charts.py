"""What all charts share: matplotlib if it is there, text that stays text, and the same file for the same results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from loadtests.kit.processes import RigError

GATEWAY: Final = "#1f6f8b"
VALKEY: Final = "#d98e04"
OTHER: Final = "#9aa5ad"
DARK: Final = "#4a545c"
"""For lines and text that have to be read on white."""

SPREAD: Final = "lowest to highest round"
"""What a legend calls the line through a median."""


def sheet(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        RigError: matplotlib is not installed.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise RigError("a chart needs matplotlib (pip install 'quota-sidecar[compare]')") from None
    rcParams["svg.fonttype"] = "none"
    rcParams["svg.hashsalt"] = "quota-sidecar"  # else names in the file are random
    return Figure(figsize=(width, height), layout="constrained")


def frame(figure: Any, title: str, result: Mapping[str, Any], rounds: int) -> None:
    """Title on top; below, when and on what it was measured."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", linespacing=1.5)
    much = f"{rounds} round{'s' if rounds > 1 else ''} of {result['seconds']} s"
    measured = f"Medians of {much}. {result['date']}, {result['machine']}, Python {result['python']}"
    figure.supxlabel(measured, x=0.01, ha="left", fontsize=8, color=DARK)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
