"""``traceparent`` (W3C Trace Context): whether it is one, and a new one in place of what is none."""

from __future__ import annotations

import os
import re
from typing import Final

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
TRACEPARENT_BYTES_MAX: Final = 128
"""Version 00 has 55 bytes. A later one may have more."""

# Section 3.2.2: version ff is invalid, as are a trace id and a parent id of zeros. Version 00 ends with its flags.
_USUAL: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LATER: Final = re.compile(rb"(?!ff|00)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?")


def is_traceparent(value: bytes) -> bool:
    """Whether the value is valid, by the rules of version 00 or, for a later version, by those that any version keeps
    (section 3.2.4), and not too long."""
    if _USUAL.fullmatch(value):
        return True
    return len(value) <= TRACEPARENT_BYTES_MAX and _LATER.fullmatch(value) is not None


def new_traceparent() -> bytes:
    """A trace that begins here. It is marked as sampled: the gateway records it, in its events and its log."""
    random = os.urandom(24).hex().encode()
    return b"00-%b-%b-01" % (random[:32], random[32:])
