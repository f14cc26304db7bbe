"""Names of the header fields that carry identity."""

from __future__ import annotations

import itertools
import re
from typing import Final

TPP_ID: Final = b"x-tpp-id"
TPP_ORGANISATION_ID: Final = b"x-tpp-organisation-id"
TPP_RESOLVER: Final = b"x-tpp-resolver"
XFCC: Final = b"x-forwarded-client-cert"
AUTHORIZATION: Final = b"authorization"

#: Dropped from peers that are not trusted even if no resolver reads them: what stands behind the gateway may.
WELL_KNOWN: Final = frozenset({TPP_ID, XFCC})

HYPHENS_MAX: Final = 6

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110 section 5.6.2, with a limit

#: Fields that frame the message, steer it, or belong to another resolver: no other credential is read there.
_RESERVED = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)


def check_field_name(name: str) -> str:
    """Answer ``name`` if a credential may be read from a field called so.

    Raises ``ValueError`` that names it.
    """
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a header field name of 1 to 64 characters (RFC 9110 section 5.1)")
    if name.lower() in _RESERVED:
        raise ValueError(f"{name!r} has a meaning of its own in HTTP and cannot carry this credential")
    if name.count("-") + name.count("_") > HYPHENS_MAX:
        raise ValueError(f"{name!r} has more than {HYPHENS_MAX} hyphens")
    return name


def lower(name: str) -> bytes:
    """Answer the name as fields are keyed."""
    return name.lower().encode("ascii")


def spellings(name: bytes) -> frozenset[bytes]:
    """Answer every spelling of ``name`` with hyphens and underscores exchanged.

    CGI-like servers (RFC 3875 section 4.1.18) see ``X_TPP_Id`` and ``X-TPP-Id`` as one variable, so a forged
    field has to be dropped in each of them. At most 2^6 by ``HYPHENS_MAX``.
    """
    parts = re.split(rb"[-_]", name)
    seams = itertools.product((b"-", b"_"), repeat=len(parts) - 1)
    return frozenset(b"".join(itertools.chain(*zip(parts, (*seam, b""), strict=True))) for seam in seams)
