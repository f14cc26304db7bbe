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
_SUFFIXES: Final = tuple(b"%02x\r\n" % low for low in range(256))


def interaction_field(error_format: str) -> bytes:
    """The lower-case name of the field, which goes with the dialect of errors."""
    return REQUEST_ID if error_format == "berlin_group" else FAPI_INTERACTION_ID


def is_interaction_id(value: bytes) -> bool:
    """Whether a value can be passed on, logged and played back: visible ASCII, of a bounded length. A field that came
    twice is none, as its values were joined with a space."""
    return _VALID.fullmatch(value) is not None


class InteractionIds:
    """Makes ids for the requests of one process.

    They are UUIDs of version 4 (RFC 9562) by their form: 74 random bits of this process, and a counter of 48 bits.
    Nobody can tell from one which of two processes made it, nor has to: an id is no secret. Two processes make the same
    one with a probability of 2^-74.
    """

    def __init__(self, name: bytes) -> None:
        self.name = name
        """Of the field, in lower case."""
        bits = int.from_bytes(os.urandom(10), "big")
        high, low = bits >> 32 & 0xFFFF_FFFF, bits & 0xFFFF_FFFF
        random = b"%08x-%04x-4%03x-%x%03x-" % (
            high, low >> 16, low & 0xFFF, 8 | low >> 12 & 3, bits >> 64 & 0xFFF
        )  # fmt: skip
        self.label = b"X-Request-ID: " if name == REQUEST_ID else name + b": "
        self._random = random
        self._high = 0
        self._low = 0
        self._begin = b""
        self._turn()

    def _turn(self) -> None:
        # Numbers take ten times as long to format as bytes to join, so they are formatted once for 256 ids.
        self._begin = b"%b%b%010x" % (self.label, self._random, self._high)
        self._high = (self._high + 1) & 0xFF_FFFF_FFFF
        self._low = 0

    def line(self) -> bytes:
        """The field line of a new id, with its CRLF."""
        low = self._low
        if low == 256:
            self._turn()
            low = 0
        self._low = low + 1
        return self._begin + _SUFFIXES[low]

    def line_of(self, value: bytes) -> bytes:
        """The field line of an id that somebody else made."""
        return b"%b%b\r\n" % (self.label, value)

    def id_of(self, line: bytes) -> bytes:
        """The id in a field line."""
        return line[len(self.label) : -2]
