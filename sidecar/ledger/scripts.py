"""The Lua scripts, read from the package, with the library they share put before each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

_LIBRARY = ("clock", "pricing", "account")


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA-1 by which EVALSHA names it."""

    name: str
    text: bytes
    sha: bytes


def _read(relative: str) -> str:
    # An installed wheel carries lua/ inside the package; a checkout has it beside the package.
    packaged = resources.files("sidecar") / "lua" / relative
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parents[2] / "lua" / relative).read_text()


@cache
def script(name: str) -> Script:
    """The script ``lua/<name>.lua``.

    Raises:
        FileNotFoundError: there is none.
    """
    parts = [_read(f"lib/{part}.lua") for part in _LIBRARY] + [_read(f"{name}.lua")]
    text = "\n".join(parts).encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
