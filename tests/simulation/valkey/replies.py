"""What a command answers, and how RESP2 spells it.

A reply is bytes, an int, None, a list of replies, a :class:`Status` (``+OK``) or an :class:`Error` (``-WRONGTYPE …``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Reply: TypeAlias = Any
"""bytes, int, None, list of replies, Status or Error."""

NEWLINES: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Status:
    text: bytes


@dataclass(frozen=True, slots=True)
class Error:
    """``message`` begins with its code, as ``WRONGTYPE``."""

    message: bytes

    def __str__(self) -> str:
        return self.message.decode("utf-8", "replace")


class CommandError(Exception):
    """A command refuses what it was given. ``message`` begins with its code."""

    def __init__(self, message: bytes | str) -> None:
        text = message.encode() if isinstance(message, str) else message
        super().__init__(text)
        self.message = text


OK: Final = Status(b"OK")
WRONGTYPE: Final = b"WRONGTYPE Operation against a key holding the wrong kind of value"
SYNTAX: Final = b"ERR syntax error"
NO_KEY: Final = b"ERR no such key"
NOT_INTEGER: Final = b"ERR value is not an integer or out of range"
NOT_FLOAT: Final = b"ERR value is not a valid float"


def encoded(reply: Reply) -> bytes:
    """The reply in RESP2."""
    parts: list[bytes] = []
    _encode(reply, parts)
    return b"".join(parts)


def _encode(reply: Reply, parts: list[bytes]) -> None:
    if reply is None:
        parts.append(b"$-1\r\n")
    elif isinstance(reply, bytes):
        parts.append(b"$%d\r\n%b\r\n" % (len(reply), reply))
    elif isinstance(reply, int):
        parts.append(b":%d\r\n" % reply)
    elif isinstance(reply, Status):
        parts.append(b"+%b\r\n" % reply.text.translate(NEWLINES))
    elif isinstance(reply, Error):
        parts.append(b"-%b\r\n" % reply.message.strip(b"\r\n").translate(NEWLINES))
    else:
        assert isinstance(reply, list | tuple), f"no reply: {reply!r}"
        parts.append(b"*%d\r\n" % len(reply))
        for each in reply:
            _encode(each, parts)


def integer(argument: bytes, message: bytes = NOT_INTEGER) -> int:
    """A 64-bit integer as the server spells one: no space, no plus, no leading zero.

    Raises:
        CommandError: it is none.
    """
    try:
        value = int(argument)
    except ValueError:
        raise CommandError(message) from None
    if b"%d" % value != argument or not -(2**63) <= value < 2**63:
        raise CommandError(message)
    return value


def number_of(argument: bytes) -> int:
    """How many of something random are wanted. Raises as :func:`integer`."""
    count = integer(argument)
    if count == -(2**63):
        raise CommandError(f"ERR value is out of range, value must between {-(2**63) + 1} and {2**63 - 1}")
    return count


def flat(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The pairs one after another."""
    return [each for pair in pairs for each in pair]
