"""The id of one call, which both sides can quote: ``x-fapi-interaction-id`` (FAPI 1.0 part 1, section 6.2.1), and
``X-Request-ID`` in the Berlin Group's API (NextGenPSD2 1.3, section 4.6)."""

from __future__ import annotations

import os
import re
from typing import Final

FAPI_INTERACTION_ID: Final = b"x-fapi-interaction-id"
REQUEST_ID: Final = b"x-request-id"
INTERACTION_ID_BYTES_MAX: Final = 128
"""Four times what a UUID takes. An API plays the id back, so a long one would make its answer's head as long."""

_VALID: Final = re.compile(rb"[!-~]{1,%d}" % INTERACTION_ID_BYTES_MAX)
LINE_ENDS: Final = (*(b"%02x\r\n" % low for low in range(256)), b"\r\n")
"""What field lines have behind ``IdBlock.line``, by the number of their id."""
_TEXT_ENDS: Final = (*(f"{low:02x}" for low in range(256)), "")
WHOLE: Final = 256
"""Number of an id that stands in its block as a whole."""


def interaction_field(error_format: str) -> bytes:
    """The lower-case name of the field, which goes with the dialect of errors."""
    return REQUEST_ID if error_format == "berlin_group" else FAPI_INTERACTION_ID


def is_interaction_id(value: bytes) -> bool:
    """Whether a value can be passed on, logged and played back: visible ASCII, of a bounded length. A field that came
    twice is none, as its values were joined with a space."""
    return _VALID.fullmatch(value) is not None


class IdBlock:
    """256 ids that begin alike, or one that somebody else made. With the number of one it is that id.

    ``line`` is the beginning of its field line, ``text`` that of the id.
    """

    __slots__ = ("line", "text")

    def __init__(self, line: bytes, text: str) -> None:
        self.line = line
        self.text = text


def id_text(block: IdBlock, number: int) -> str:
    """The id."""
    return block.text + _TEXT_ENDS[number]


class InteractionIds:
    """Makes ids for the requests of one process.

    They are UUIDs of version 4 (RFC 9562) by their form: 74 random bits of this process, and a counter of 48 bits.
    Nobody can tell from one which of two processes made it, nor has to: an id is no secret. Two processes make the same
    one with a probability of 2^-74.

    To format a number takes as long as all else about a request's id. So it is done once for 256 of them, and neither
    the id nor its line is put together before it is written somewhere: ``block`` and ``number`` are those of the last
    one that was made.
    """

    def __init__(self, name: bytes) -> None:
        self.name = name
        """Of the field, in lower case."""
        self.label = b"X-Request-ID: " if name == REQUEST_ID else name + b": "
        bits = int.from_bytes(os.urandom(10), "big")
        high, low = bits >> 32 & 0xFFFF_FFFF, bits & 0xFFFF_FFFF
        self._random = b"%08x-%04x-4%03x-%x%03x-" % (
            high, low >> 16, low & 0xFFF, 8 | low >> 12 & 3, bits >> 64 & 0xFFF
        )  # fmt: skip
        self._high = 0
        self.block = self._next_block()
        self.number = -1

    def _next_block(self) -> IdBlock:
        text = b"%b%010x" % (self._random, self._high)
        self._high = (self._high + 1) & 0xFF_FFFF_FFFF
        return IdBlock(self.label + text, text.decode())

    def make(self) -> int:
        """Makes an id, and answers its number."""
        number = self.number + 1
        if number == WHOLE:
            self.block = self._next_block()
            number = 0
        self.number = number
        return number

    def make_text(self) -> str:
        """Makes an id, and answers it."""
        number = self.make()
        return id_text(self.block, number)

    def given(self, value: bytes) -> IdBlock:
        """One that somebody else made; its number is `WHOLE`. Of what an API makes, the beginning is kept."""
        return IdBlock(self.label + value, value[:INTERACTION_ID_BYTES_MAX].decode("latin-1"))
