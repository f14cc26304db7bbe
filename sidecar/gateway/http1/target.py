"""Request targets: their four forms (RFC 9112 section 3.2), and the path by which a route is chosen.

The path that goes upstream is never changed. The path by which a request is *priced* has to mean the same to us and to
whatever server stands behind us, so a path that servers are known to read in different ways is refused.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from sidecar.gateway.http1.grammar import HOST, ProtocolError

__all__ = ["cut_paths", "decoded_slashes", "routing_path", "split_target"]

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
ESCAPES_MAX: Final = 512
"""Escapes of a path. The longest name of a file has half of these. More would cost the gateway milliseconds."""
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_RESERVED = frozenset(b":/?#[]@!$&'()*+,;=")
_CONTROLS = frozenset([*range(0x20), 0x7F])
_DECODED = (_UNRESERVED | _RESERVED) - frozenset(b"/?#")
"""A template cannot have ``?`` and ``#``, and decoded they would end the path: they stay as data."""


def _decoded_octet(octet: int) -> bytes | None:
    if octet in _DECODED:
        return bytes((octet,))
    return None if octet in _CONTROLS or octet == 0x5C else b"%%%02X" % octet


def _hex_pairs(octet: int) -> set[bytes]:
    high, low = b"%x" % (octet >> 4), b"%x" % (octet & 15)
    return {one + other for one in (high, high.upper()) for other in (low, low.upper())}


_ESCAPED: Final = {digits: _decoded_octet(octet) for octet in range(256) for digits in _hex_pairs(octet)}
"""What becomes of an escape, by its two digits; None for those that are refused."""
_NEVER_TWICE = _UNRESERVED | _RESERVED | _CONTROLS | frozenset(b"%\\")
"""Octets that mean something in a path, or that a literal of a template can have."""


def _escapes_of(octets: frozenset[int]) -> bytes:
    """Expression for the two digits of their escapes."""
    low_digits: dict[int, bytes] = {}
    for octet in sorted(octets):
        low_digits[octet >> 4] = low_digits.get(octet >> 4, b"") + b"%x" % (octet & 15)
    return b"|".join(b"%x[%b]" % (high, digits) for high, digits in low_digits.items())


# What a second decoder would still decode into one of these; ``%uHHHH`` is IIS's own form.
_SECOND_ESCAPE = re.compile(rb"(?i)%(?:" + _escapes_of(_NEVER_TWICE) + rb"|u[0-9a-f]{4})")
_OVERLONG = re.compile(rb"[\xC0\xC1\xF5-\xFF]|\xE0[\x80-\x9F]|\xF0[\x80-\x8F]")  # %C0%AF is a slash to lenient decoders
_ODD_SEGMENT = re.compile(rb"//|/\.{1,2}(?:/|\Z)|\\")
_PARAMETER = re.compile(rb";[^/]*+")
_CUT = re.compile(rb"(?:[?#]|%3F|%23).*+", re.DOTALL)
_SLASH = b"%2F"


def routing_path(path: bytes, *, encoded_slash: bool = False) -> bytes:
    """The canonical path, by which a route is looked up: escapes of unreserved and reserved characters are decoded
    once, all others and those of ``/ ? #`` stay as data, in upper case (RFC 3986 section 6.2.2).

    Args:
        path: as received, of printable ASCII characters.
        encoded_slash: ``%2F`` stays, as data, and `decoded_slashes` is the other reading. Otherwise it is refused.

    Raises:
        ProtocolError: 400, the path could reach another resource than the one it would be charged for: it has ``.`` or
            ``..`` segments, empty segments, an encoded slash, a backslash, a control character, parameters (``;``,
            which some servers cut off and others keep), an escape that is broken or no UTF-8, or one that a second
            decoding would turn into a character that means something in a path or in a template.
    """
    if _PLAIN_PATH.fullmatch(path) or path == b"*":
        return path
    if b";" in path:
        raise _ambiguous("a parameter")
    decoded = path
    if b"%" in path:
        decoded = _decode_escapes(path)
        _check_octets(unquote_to_bytes(path))
        if not encoded_slash and _SLASH in decoded:
            raise _ambiguous("an escaped slash")
        for cut in cut_paths(decoded):
            _check_segments(cut)
    _check_segments(decoded)
    return decoded


def decoded_slashes(path: bytes) -> bytes:
    """A routing path with ``%2F`` as a server reads it that decodes before it splits.

    Raises:
        ProtocolError: 400, the path then has an empty segment or a dot segment.
    """
    decoded = path.replace(_SLASH, b"/")
    _check_segments(decoded)
    return decoded


def cut_paths(path: bytes) -> list[bytes]:
    """A routing path as servers read it that decode first and then cut off parameters, query or fragment."""
    found = []
    if b";" in path:
        found.append(_PARAMETER.sub(b"", path))
    if _CUT.search(path):
        found.append(_CUT.sub(b"", path))
        if b";" in path:
            found.append(_PARAMETER.sub(b"", found[-1]))
    return found


def _decode_escapes(path: bytes) -> bytes:
    first, *rest = path.split(b"%")
    if len(rest) > ESCAPES_MAX:
        raise _ambiguous(f"more than {ESCAPES_MAX} escapes")
    pieces = [first]
    for part in rest:
        digits = part[:2]
        decoded = _ESCAPED.get(digits)
        if decoded is None:
            known = digits in _ESCAPED
            raise _ambiguous("an escaped backslash or control character" if known else "a broken escape")
        pieces.append(decoded + part[2:])
    return b"".join(pieces)


def _check_octets(decoded: bytes) -> None:
    """``decoded``: all escapes decoded once."""
    if _SECOND_ESCAPE.search(decoded):
        raise _ambiguous("an escaped escape")
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise _ambiguous("an escape that is no UTF-8") from None
    if b"%" in decoded and _OVERLONG.search(unquote_to_bytes(decoded)):
        raise _ambiguous("an escaped escape")


def _check_segments(path: bytes) -> None:
    if _ODD_SEGMENT.search(path):
        raise _ambiguous("an empty segment, a dot segment or a backslash")


def _ambiguous(what: str) -> ProtocolError:
    return ProtocolError(400, f"The path has {what}.")
