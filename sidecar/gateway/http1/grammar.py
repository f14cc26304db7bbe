"""The grammar of HTTP/1.1 as regular expressions, and what is wrong with bytes that do not match it.

The expressions are stricter than the RFCs wherever two parsers in a row are known to disagree: a line ends in CRLF
and nothing else, lines are never folded, names are tokens, values hold no control character. All repetitions are
possessive, so matching time is linear in the input.

A fault is always that of the *first* offending byte, found from the longest prefix that is still valid. So the answer
does not depend on how the bytes were cut into pieces on their way.
"""

from __future__ import annotations

import re

__all__ = [
    "CHUNK_SIZE_LINE",
    "CONTENT_LENGTH",
    "CONTROLS",
    "CONTROL_IN_VALUE",
    "HOST",
    "STATUS_LINE",
    "TOKEN",
    "ProtocolError",
    "field_lines",
    "field_lines_fault",
    "fold",
    "loose_field_lines",
    "request_line",
    "request_line_fault",
    "request_line_prefix",
    "status_line_fault",
]


class ProtocolError(Exception):
    """A message that is not passed on.

    ``status`` is what the client is to be answered (502 if the message came from the upstream), ``reason`` is a
    sentence fit for its eyes: it quotes nothing of what was sent. The connection has to be closed, since nobody knows
    where the next message would begin.

    Attributes:
        fields: of a request whose head could be read, what it said; None if it could not.
        answered: of a response, the status in its valid status line; 0 if that was not readable.
        by_caller: of a response, whether a caller can bring the fault about, because the API repeats something of the
            request: a head that is too large, too many fields, bytes that no field may have. Framing that contradicts
            itself is the API's own.
    """

    def __init__(self, status: int, reason: str, *, by_caller: bool = False, answered: int = 0) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.by_caller = by_caller
        self.answered = answered
        self.fields: dict[bytes, bytes] | None = None


# RFC 9110 section 5.6.2: token = 1*tchar
_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN = re.compile(_TCHAR + rb"++")

# RFC 9110 section 5.5: field-value = *field-content; field-vchar = VCHAR / obs-text. No CR, LF, NUL, no other control
# character but HTAB ("recipients ... MUST either reject ... or replace").
_VALUE_OCTET = rb"[\t -~\x80-\xff]"

# RFC 9112 section 5: field-line = field-name ":" OWS field-value OWS. No space before the colon (section 5.1: MUST be
# refused with 400), no obs-fold (section 5.2), never an empty name.
_FIELD_LINE = _TCHAR + rb"++:" + _VALUE_OCTET + rb"*+\r\n"

# RFC 9112 section 3.2: visible ASCII. RFC 3986 allows fewer, but browsers and clients send `|`, `"` and their like
# raw; `#` is never sent by a client that follows the rules, and what follows it is seen by some servers only.
_TARGET_OCTET = rb'[!"$-~]'

# RFC 9112 section 3.2 and RFC 3986 section 3.2.2, without userinfo, percent-encoding and sub-delims: no such
# name can be resolved, and servers that choose by Host read them differently.
HOST = re.compile(rb"(?:[0-9A-Za-z._~\-]{1,255}+|\[[0-9A-Fa-f:.]{2,45}+\])(?::[0-9]{1,5}+)?+")

# RFC 9110 section 8.6: 1*DIGIT. Eighteen digits stay below 2^63 in every language that may read it after us.
CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}+")

# RFC 9112 section 7.1 and 7.1.1. White space stands before and behind ";" and "=" only; parsers differ in whether they
# see it, and none of it goes on.
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_BWS = rb"[\t ]*+"
_EXTENSION_VALUE = _BWS + rb"=" + _BWS + rb"(?:" + _TCHAR + rb"++|" + _QUOTED + rb")"
_CHUNK_EXTENSION = _BWS + rb";" + _BWS + _TCHAR + rb"++(?:" + _EXTENSION_VALUE + rb")?+"
CHUNK_SIZE_LINE = rb"([0-9A-Fa-f]{1,16}+)((?:" + _CHUNK_EXTENSION + rb")*+)\r\n"

# RFC 9110 section 2.5: a higher minor version than ours is read as the highest that we know.
_VERSION = re.compile(rb"HTTP/1\.[0-9]")
_OTHER_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?+")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [1-5][0-9]{2}(?: [\t -~\x80-\xff]*+)?+")
_STATUS_LINE_PREFIX = re.compile(_VALUE_OCTET + rb"*+")
_PARTIAL_FIELD = re.compile(rb"(?:" + _TCHAR + rb"++(?::" + _VALUE_OCTET + rb"*+)?+)?+")
_IS_TCHAR = re.compile(_TCHAR)
_IS_TARGET = re.compile(_TARGET_OCTET)

_CR = 0x0D

_FOLDED = bytes(ord(chr(c).lower()) if chr(c).isalnum() else 0x2D for c in range(0x80)) + bytes(range(0x80, 0x100))


def fold(name: bytes) -> bytes:
    """The name as CGI and its like take it for another's: small letters, and everything between them a hyphen.

    RFC 3875 section 4.1.18 makes one variable of ``X-TPP-Id`` and ``X_TPP_Id``; some servers do so with all characters
    of a token that are no letters or digits.
    """
    return name.translate(_FOLDED)


#: All control characters but HTAB.
CONTROLS = bytes({*range(0x20), 0x7F} - {0x09})
CONTROL_IN_VALUE = "A header field's value has a control character."


def field_lines(count_max: int) -> bytes:
    """Expression for up to ``count_max`` field lines, each with its CRLF, without the empty line after them."""
    return rb"(?:" + _FIELD_LINE + rb"){0,%d}+" % count_max


def loose_field_lines(count_max: int) -> bytes:
    """The same, but a value may hold anything except CR: twice as fast on heads with long tokens in them.

    Since a line has no other CR than that at its end, the lines are those of `field_lines` if all `CONTROLS` in them
    are two a line. Whoever uses this looks.
    """
    return rb"(?:" + _TCHAR + rb"++:[^\r]*+\r\n){0,%d}+" % count_max


def request_line(method_bytes_max: int, target_bytes_max: int) -> bytes:
    """Expression for a request line with groups method, target, minor version (RFC 9112 section 3)."""
    method = rb"(" + _TCHAR + rb"{1,%d}+)" % method_bytes_max
    target = rb"(" + _TARGET_OCTET + rb"{1,%d}+)" % target_bytes_max
    return method + rb" " + target + rb" HTTP/1\.([0-9])\r\n"


#: RFC 9112 section 4. The space after the code is optional, as many servers leave it out with the reason.
STATUS_LINE = rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*+))?+\r\n"


def request_line_prefix(method_bytes_max: int, target_bytes_max: int) -> re.Pattern[bytes]:
    """Matches the longest valid beginning of a request line; its last group tells how far it came."""
    method = rb"(" + _TCHAR + rb"{1,%d}+)" % method_bytes_max
    target = rb"(" + _TARGET_OCTET + rb"{0,%d}+)" % target_bytes_max
    version = rb"(?<=" + _TARGET_OCTET + rb") ([!-~]{0,16}+)"
    return re.compile(rb"(?:" + method + rb"(?: " + target + rb"(?:" + version + rb")?+)?+)?+")


def _line_goes_on(buf: bytes, at: int, stop: int) -> bool:
    """Whether the offending byte is a CR of which it is not yet known what follows."""
    return buf[at] == _CR and at + 1 == stop


def request_line_fault(buf: bytes, start: int, stop: int, prefix: re.Pattern[bytes]) -> ProtocolError | int | None:
    """What is wrong with the request line that begins at ``start``.

    Returns:
        the fault; the position after the line if it is complete and valid; None while more bytes are needed.
    """
    match = prefix.match(buf, start, stop)
    assert match is not None, "the prefix may be empty"
    at = match.end()
    if at == stop or (at > start and _line_goes_on(buf, at, stop)):
        return None
    method, target, version = match.groups()
    crlf = buf.startswith(b"\r\n", at)
    if version is not None:
        return _version_fault(version, at, crlf)
    if target is not None:
        if _IS_TARGET.match(buf, at):
            return ProtocolError(414, "The request target is too long.")
        if crlf:
            return ProtocolError(400, "The request line has no HTTP version.")
        if buf[at] == 0x23:
            return ProtocolError(400, "The request target has a fragment.")
        return ProtocolError(400, "The request target has a character that is not allowed.")
    if method is None and crlf:
        return ProtocolError(400, "There is more than one empty line before the request.")
    if method is not None and _IS_TCHAR.match(buf, at):
        return ProtocolError(501, "The method is not implemented.")
    return ProtocolError(400, "The request line is malformed.")


def _version_fault(version: bytes, at: int, crlf: bool) -> ProtocolError | int:
    if crlf and _VERSION.fullmatch(version):
        return at + 2
    if crlf and _OTHER_VERSION.fullmatch(version):
        return ProtocolError(505, "Only HTTP/1.1 and HTTP/1.0 are supported.")
    return ProtocolError(400, "The request line is malformed.")


def status_line_fault(buf: bytes, start: int, stop: int) -> ProtocolError | int | None:
    """The same for a status line (RFC 9112 section 4)."""
    match = _STATUS_LINE_PREFIX.match(buf, start, stop)
    assert match is not None, "the prefix may be empty"
    at = match.end()
    if at == stop or _line_goes_on(buf, at, stop):
        return None
    if buf.startswith(b"\r\n", at) and _STATUS_LINE.fullmatch(buf, start, at):
        return at + 2
    return ProtocolError(502, "The upstream's status line is malformed.")


def field_lines_fault(
    buf: bytes, start: int, stop: int, lines: re.Pattern[bytes], count_max: int
) -> ProtocolError | None:
    """What is wrong with the field lines from ``start``; None if nothing is, as far as they have come.

    ``lines`` is the compiled `field_lines` of ``count_max``. The section must not be complete and valid.
    """
    match = lines.match(buf, start, stop)
    assert match is not None, "no line is a match too"
    line = match.end()
    if line == stop or _line_goes_on(buf, line, stop):
        return None
    if buf[line] != _CR and buf.count(b"\n", start, line) == count_max:
        return ProtocolError(431, "There are too many header fields.", by_caller=True)
    partial = _PARTIAL_FIELD.match(buf, line, stop)
    assert partial is not None, "the partial line may be empty"
    at = partial.end()
    if at == stop or (_line_goes_on(buf, at, stop) and b":" in partial[0]):
        return None
    if at == line and buf[at] in b" \t":
        return ProtocolError(400, "A header field is folded over several lines.", by_caller=True)
    if b":" in partial[0]:
        return ProtocolError(400, CONTROL_IN_VALUE, by_caller=True)
    if at > line and buf[at] in b" \t":
        return ProtocolError(400, "There is white space before the colon of a header field.", by_caller=True)
    return ProtocolError(400, "A header field's name is malformed.", by_caller=True)
