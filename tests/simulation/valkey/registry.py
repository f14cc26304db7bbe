"""The table of commands: who does what, how many arguments it takes, and what a server in trouble refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tests.simulation.valkey.replies import Reply

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

Run: TypeAlias = Callable[["SimulatedValkey", list[bytes]], Reply]
"""Gets the server and the whole command, its name included."""
Keys: TypeAlias = Callable[[list[bytes]], list[bytes]]


@dataclass(frozen=True, slots=True)
class Command:
    """``arity``: parts with the name; negative for at least so many. ``writes``: refused by a replica, a server without
    enough replicas or with a failing disk. ``grows``: refused without memory. ``scripts``: whether a script may call
    it. ``keys``: the keys of a call, for a cluster. ``while_loading``, ``while_busy``: answered in these states too."""

    name: str
    run: Run
    arity: int
    writes: bool = False
    grows: bool = False
    scripts: bool = True
    keys: Keys | None = None
    while_loading: bool = False
    while_busy: bool = False
    container: bool = False


COMMANDS: Final[dict[bytes, Command]] = {}


@dataclass(frozen=True, slots=True)
class KeysAt:
    """Keys from position ``first`` to ``last`` (-1: the last part), every ``step`` parts."""

    first: int
    last: int
    step: int

    def __call__(self, parts: list[bytes]) -> list[bytes]:
        return parts[self.first : (len(parts) if self.last == -1 else self.last + 1) : self.step]


def keys_at(first: int, last: int = 0, step: int = 1) -> Keys:
    """``last`` 0: only the first."""
    return KeysAt(first, last or first, step)


def keys_counted(parts: list[bytes]) -> list[bytes]:
    """Of EVAL and FCALL: their number comes before them."""
    count = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else 0
    return parts[3 : 3 + count]


def keys_of_streams(parts: list[bytes]) -> list[bytes]:
    """Of XREADGROUP: the first half of what follows STREAMS."""
    names = [part.upper() for part in parts]
    rest = parts[names.index(b"STREAMS") + 1 :] if b"STREAMS" in names else []
    return rest[: len(rest) // 2]


def command(
    name: str, arity: int, *, keys: Keys | None = None, writes: bool = False, grows: bool = False, scripts: bool = True,
    while_loading: bool = False, while_busy: bool = False, container: bool = False,
) -> Callable[[Run], Run]:  # fmt: skip
    """Adds a command to the table. A name with a bar is a subcommand: ``xgroup|create``."""

    def add(run: Run) -> Run:
        each = Command(name, run, arity, writes, grows, scripts, keys, while_loading, while_busy, container)
        COMMANDS[name.upper().encode()] = each
        return run

    return add


def lookup(parts: list[bytes]) -> Command | None:
    """The command or subcommand of a call; None if there is none."""
    name = parts[0]
    found = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if found is not None and found.container and len(parts) > 1:
        return COMMANDS.get(b"%b|%b" % (name.upper(), parts[1].upper()))
    return found
