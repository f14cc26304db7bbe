"""The Lua scripts and functions, read from the package, with the library they share put before each.

What every request needs is a function (FCALL): its parts are made once, when it is loaded, and it may keep what it
knows from call to call. All else are scripts, which need no loading beforehand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

NAME_DIGITS = 16

_LIBRARY = ("names", "time", "clock", "instance", "pricing", "account", "marks")


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA-1 by which EVALSHA names it."""

    name: str
    text: bytes
    sha: bytes


@dataclass(frozen=True, slots=True)
class Function:
    """What FCALL calls it, and the library that FUNCTION LOAD takes."""

    name: bytes
    library: bytes


def _read(relative: str) -> str:
    # An installed wheel carries lua/ inside the package; a checkout has it beside the package.
    packaged = resources.files("sidecar") / "lua" / relative
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parents[2] / "lua" / relative).read_text()


def composed(name: str) -> str:
    """The text of ``lua/<name>.lua`` with the library before it.

    Raises:
        FileNotFoundError: there is none.
    """
    return "\n".join([_read(f"lib/{part}.lua") for part in _LIBRARY] + [_read(f"{name}.lua")])


@cache
def script(name: str) -> Script:
    """The script ``lua/<name>.lua``.

    Raises:
        FileNotFoundError: there is none.
    """
    text = composed(name).encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


@cache
def function(name: str) -> Function:
    """The function ``name`` that ``lua/<name>.lua`` defines.

    Raises:
        FileNotFoundError: there is none.
    """
    return as_function(name, composed(name))


def as_function(name: str, text: str) -> Function:
    """A function of this text. Its name tells its text, so gateways of several releases can share a server."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]
    called = f"quota_{name}_{digest}"
    library = f"#!lua name={called}\n{text}\nredis.register_function('{called}', {name})\n"
    return Function(called.encode(), library.encode())
