"""Request targets: their four forms (RFC 9112 section 3.2), and the path by which a route is chosen.

The path that goes upstream is never changed. The path by which a request is *priced* has to mean the same to us and to
whatever server stands behind us, so a path that servers are known to read in different ways is refused.
"""

from __future__ import annotations

import re

from sidecar.gateway.http1.grammar import HOST, ProtocolError

__all__ = ["routing_path", "split_target"]

_ABSOLUTE = re.compile(rb"(?i:http(s?))://([^/?]*+)(/[^?]*+)?+(?:\?(.*+))?+")


def split_target(method: bytes, target: bytes, host: bytes, *, https: bool = True) -> tuple[bytes, bytes, bytes]:
    """Path, query and authority of a target that does not begin with a slash; ``host`` is the value of Host.

    RFC 9112 section 3.2.2 lets the authority of absolute-form win over Host. A request in which they differ is
    refused instead, since whoever reads Host behind us would disagree. So is a user name before the host, as RFC 9110
    section 4.2.4 advises.

    Without ``https`` a target with that scheme is refused with 421: RFC 9110 section 7.4 asks a server to refuse a
    request for an https resource that did not come over a secured connection, and has that status for it.

    Raises:
        ProtocolError: 400, the target is of no form that is served here, or its host is not valid or not that of Host.
            421, see above.
    """
    if target == b"*":
        if method != b"OPTIONS":
            raise ProtocolError(400, "The request target * is for OPTIONS only.")
        return target, b"", host
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise ProtocolError(400, "The request target is neither a path nor an http or https URI.")
    secure, authority, path, query = match.groups(b"")
    if secure and not https:
        raise ProtocolError(421, "The request target is an https URI, and the connection has no TLS.")
    if not HOST.fullmatch(authority):
        raise ProtocolError(400, "The request target's host is malformed.")
    if host and authority.lower() != host.lower():
        raise ProtocolError(400, "Host differs from the request target's host.")
    if not path:
        # RFC 9112 section 3.2.4: OPTIONS of a URI without path and query is meant for the server as a whole.
        path = b"*" if method == b"OPTIONS" and b"?" not in target else b"/"
    return path, query, authority


# The usual path: no empty segment, none that begins with a dot, no escapes, no parameters.
_SEGMENT_OCTET = rb"[0-9A-Za-z\-_~!$&'()*+,=:@]"
_PLAIN_PATH = re.compile(rb"(?:/" + _SEGMENT_OCTET + rb"(?:" + _SEGMENT_OCTET + rb"|\.)*+)*+/?+")
_ESCAPE = re.compile(rb"%(.?.?)", re.DOTALL)
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX_PAIR = re.compile(rb"[0-9A-Fa-f]{2}")
# Slash, backslash, percent (of a second escape), dot, NUL as a second decoder would see them.
_DOUBLE_ESCAPE = re.compile(rb"%25(?:2[5EeFf]|5[Cc]|00)")
_ODD_SEGMENT = re.compile(rb"//|/\.{1,2}(?:/|\Z)|\\|;")


def routing_path(path: bytes) -> bytes:
    """The path to look a route up by: escapes of unreserved characters decoded, all others in upper case (RFC 3986
    section 6.2.2).

    Raises:
        ProtocolError: 400, the path could reach another resource than the one it would be charged for: it has ``.`` or
            ``..`` segments, empty segments, an encoded slash, a backslash, a control character, parameters (``;``,
            which some servers cut off and others keep), a broken, doubled or overlong escape.
    """
    if _PLAIN_PATH.fullmatch(path) or path == b"*":
        return path
    if _DOUBLE_ESCAPE.search(path):
        raise _ambiguous("an escaped escape")
    decoded = _ESCAPE.sub(_decode_escape, path) if b"%" in path else path
    if _ODD_SEGMENT.search(decoded):
        raise _ambiguous("an empty segment, a dot segment, a backslash or a parameter")
    return decoded


def _decode_escape(match: re.Match[bytes]) -> bytes:
    digits = match[1]
    if not _HEX_PAIR.fullmatch(digits):
        raise _ambiguous("a broken escape")
    octet = int(digits, 16)
    if octet in _UNRESERVED:
        return bytes((octet,))
    if octet in b"/\\" or octet < 0x20 or octet == 0x7F:
        raise _ambiguous("an escaped slash, backslash or control character")
    if octet in (0xC0, 0xC1) or octet > 0xF4:
        raise _ambiguous("an escape that is no UTF-8")  # %C0%AF is an overlong slash to lenient decoders
    return b"%" + digits.upper()


def _ambiguous(what: str) -> ProtocolError:
    return ProtocolError(400, f"The path has {what}.")
