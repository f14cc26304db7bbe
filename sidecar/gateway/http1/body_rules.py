"""What holds for all bodies of one direction: limits, the status of refusals, and which trailers go on."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.gateway.http1.grammar import fold
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.http1.name_patterns import NO_PATTERNS, NamePatterns

__all__ = ["BodyRules", "Piece"]

#: Something to give to ``transport.writelines``.
Piece = bytes | memoryview

# RFC 9110 section 6.5.1: no field that is needed before the content, i.e. for framing, routing, request modifiers,
# authentication, response control or processing of the content. Fields that begin with content- are refused too,
# but for digests (RFC 9530 section 2), which trailers are for.
_FORBIDDEN_TRAILERS = frozenset(
    b"""accept accept-charset accept-encoding accept-language accept-ranges age allow authorization cache-control
    connection cookie cookie2 date expect expires forwarded host if-match if-modified-since if-none-match if-range
    if-unmodified-since keep-alive location max-forwards pragma proxy-authenticate proxy-authorization
    proxy-connection range retry-after set-cookie set-cookie2 te trailer transfer-encoding upgrade vary via warning
    www-authenticate x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-client-cert""".split()
)
_TRAILER_DIGESTS = frozenset({b"content-digest", b"content-md5"})


@dataclass(frozen=True, slots=True)
class BodyRules:
    """What holds for all bodies of one direction.

    ``refuse_with`` is the status for broken framing: 400 for a client's, 502 for the upstream's. ``trailers_dropped``
    are lower-case field names that are not forwarded in trailers, besides those that RFC 9110 section 6.5.1 forbids;
    ``trailers_like`` are more of them, by their beginnings.
    """

    limits: Limits
    refuse_with: int
    body_bytes_max: int | None = None
    trailers_dropped: frozenset[bytes] = frozenset()
    trailers_like: NamePatterns = NO_PATTERNS

    def forwards_trailer(self, name: bytes) -> bool:
        """Whether a trailer field may go on. An underscore counts as a hyphen (`grammar.fold`)."""
        folded = fold(name)
        if folded in _FORBIDDEN_TRAILERS or folded in self.trailers_dropped or self.trailers_like.match(folded):
            return False
        return not folded.startswith(b"content-") or folded in _TRAILER_DIGESTS
