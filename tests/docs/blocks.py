"""Fenced blocks of the documentation, and how each is executed.

A block is fenced as ```` ```sh ```` and a word that says where it runs:

* no word: here, in the order of its page, in one bash for the page. A ``text`` block after it is what it prints;
* ``stays``: here, in the background until the page ends, since the program runs until it is stopped;
* ``tools``: here, with small numbers, where the system's packages that it names are installed;
* ``cluster``: needs a Kubernetes cluster. Its steps, with the tests' own image and stand-ins, are those of
  ``make test-cluster``; here its syntax is checked, and ``tests/deploy`` checks what it names;
* ``machine``: needs a machine of its own, with systemd or Docker. It is checked like ``cluster`` and run by nobody;
* ``ci``: the command that ``.ci/run`` gives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
WHERE: Final = ("", "stays", "tools", "cluster", "machine", "ci")
_FENCE: Final = re.compile(r"^```([a-z]*)[ ]?([a-z-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """``line``: of its fence, from 1. ``shown``: what the page says that it prints, or None."""

    page: str
    line: int
    language: str
    where: str
    text: str
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, by its path from the root, each with the ``text`` block right after it."""
    source = (ROOT / page).read_text()
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        language, where, text = match[1], match[2], match[3]
        after = (
            bool(found) and found[-1].language == "sh" and not re.search(r"^#|^\|", source[end : match.start()], re.M)
        )
        if language == "text" and after and found[-1].shown is None:
            last = found.pop()
            found.append(Block(last.page, last.line, last.language, last.where, last.text, text))
        else:
            found.append(Block(page, line, language, where, text))
        end = match.end()
    return found


def pages() -> list[str]:
    """README, docs, deploy/README and the pages for contributors, by their paths from the root."""
    named = (
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "deploy/README.md",
        "deploy/runbooks.md",
        "tests/README.md",
    )
    return [*named, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def matches(shown: str, printed: str) -> bool:
    """Whether a program printed what a page shows. ``…`` stands for what varies: within a line for any text without a
    line break, alone on a line for any lines."""
    pattern = ""
    for line in shown.rstrip("\n").split("\n"):
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[ \t]*" + r"[^\n]*?".join(re.escape(part) for part in line.strip().split("…")) + r"[ \t]*\n"
    return re.search(pattern, printed.replace("\r", "") + "\n") is not None
