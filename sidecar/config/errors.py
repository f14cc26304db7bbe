"""What is wrong in a configuration, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: A list of errors longer than this helps nobody.
SHOWN_MAX = 50


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file and a line counted from 1, or an environment variable (``line`` None)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``path`` is the key's, dotted, "" for the whole document."""

    origin: Origin
    path: str
    message: str

    def __str__(self) -> str:
        if self.origin.line is None and not self.path and self.message.startswith("is "):
            return f"{self.origin} {self.message}"
        return ": ".join(part for part in (str(self.origin), self.path, self.message) if part)


class ConfigError(Exception):
    """A configuration or accounts file that cannot be used. Its text has a line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.origin.source, p.origin.line or 0)))
        assert self.problems, "an error without a problem"
        lines = [str(problem) for problem in self.problems[:SHOWN_MAX]]
        if len(self.problems) > SHOWN_MAX:
            lines.append(f"… and {len(self.problems) - SHOWN_MAX} more")
        super().__init__("\n".join(lines))


def dotted(path: Sequence[str | int]) -> str:
    """Write a key path as people do: ``routes[2].charge_statuses``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
