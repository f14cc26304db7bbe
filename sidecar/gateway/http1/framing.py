"""Heads of HTTP/1.1 messages (RFC 9112, RFC 9110), without I/O: what a head says, and what of it goes on.

Two parsers in a row are safe when the first forwards only what any other reads the same way. So a head either
matches one strict grammar or is refused; fields that frame a message are refused when they are repeated, odd or
contradict each other; fields that concern one connection are taken out; the rest is forwarded byte for byte.

A head that lies complete in one piece, as nearly all do, costs one match of one expression and one look at each
field's name; where the compiled core was built, one pass over its bytes. Everything else is off that path: an
incomplete or invalid head is examined in `grammar`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sidecar.gateway.http1.body import BodyKind, BodyRules
from sidecar.gateway.http1.fields import NEVER_CONNECTION_OPTIONS, Connection, FieldReader, list_elements, without
from sidecar.gateway.http1.grammar import (
    CONTENT_LENGTH,
    HOST,
    STATUS_LINE,
    TOKEN,
    ProtocolError,
    field_lines,
    field_lines_fault,
    loose_field_lines,
    request_line,
    request_line_fault,
    request_line_prefix,
    status_line_fault,
)
from sidecar.gateway.http1.heads import RequestHead, ResponseHead
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.http1.name_patterns import NO_PATTERNS, NamePatterns
from sidecar.gateway.http1.scanner import HeadScanner, RequestParts, ResponseParts, scanner_factory
from sidecar.gateway.http1.target import split_target

__all__ = ["BodyKind", "HeadParser", "ProtocolError", "RequestHead", "ResponseHead"]

# A tunnel would reach the upstream past every check, and TRACE sends back the fields that the gateway added.
_METHODS_REFUSED = frozenset({b"CONNECT", b"TRACE"})

_SLASH = 0x2F
_NO_BODY = BodyKind.NONE  # a look into an enumeration takes as long as a method call
_CONTROL = re.compile(rb"[\x00-\x08\n-\x1f\x7f]")
_ANY_STATUS_LINE = re.compile(STATUS_LINE)
# Bytes of an incomplete head after which it is examined even if no line of it ended.
_EXAMINE_EVERY = 1024
# Valid hosts are remembered, up to this number and length.
_HOSTS_MAX, _HOST_BYTES_MAX = 256, 64


class HeadParser:
    """Reads heads. Made once per kind of peer; a message leaves nothing behind that changes how the next is read.

    Args:
        interesting: lower-case names of fields to be put into ``fields``.
        drop: lower-case names of fields that are not forwarded, besides the hop-by-hop ones. They are put into
            ``fields`` as well.
        limits: see `Limits`.
        upgrades: lower-case names of the protocols to which a client may switch. Never h2c: the requests inside of
            it would pass uncounted.
        compiled: False does without the compiled core.
        like: names of fields that are not forwarded in any spelling, and not put into ``fields``, unless they are in
            ``interesting``.
        plain_passes: of those, what is written with hyphens goes on.
        marks: of ``interesting``, those that are rare and change what is done; a head says whether it has one.
        https: the scheme may be https in a target in absolute-form.

    Raises:
        ValueError: a name is no field name in lower case.
    """

    def __init__(
        self,
        interesting: Iterable[bytes] = (),
        drop: Iterable[bytes] = (),
        limits: Limits | None = None,
        upgrades: Iterable[bytes] = (b"websocket",),
        compiled: bool = True,
        like: NamePatterns = NO_PATTERNS,
        *,
        plain_passes: bool = False,
        marks: Iterable[bytes] = (),
        https: bool = True,
    ) -> None:
        self.limits = limits = limits or Limits()
        self._https = https
        self._marks = frozenset(marks)
        self._fields = FieldReader(interesting, drop, like, plain_passes=plain_passes)
        self._scanner: HeadScanner | None = None
        if compiled and scanner_factory is not None:
            self._scanner = scanner_factory(
                self._fields.known, limits.method_bytes_max, limits.target_bytes_max, limits.head_bytes_max,
                limits.fields_max, limits.body_bytes_max, NO_PATTERNS if plain_passes else like,
                self._marks,
            )  # fmt: skip
        self._upgrades = frozenset(upgrades)
        self._hosts: set[bytes] = set()
        self._lines = re.compile(field_lines(limits.fields_max))
        lines = loose_field_lines(limits.fields_max)
        self._request_prefix = request_line_prefix(limits.method_bytes_max, limits.target_bytes_max)
        start = request_line(limits.method_bytes_max, limits.target_bytes_max)
        self._request = re.compile(start + rb"(" + lines + rb")\r\n").match
        self._response = re.compile(STATUS_LINE + rb"(" + lines + rb")\r\n").match
        never_in_trailers = self._fields.named | NEVER_CONNECTION_OPTIONS
        #: Rules for the bodies of requests, and for those of responses, whose heads this parser reads.
        self.request_rules = BodyRules(limits, 400, limits.body_bytes_max, never_in_trailers, like)
        self.response_rules = BodyRules(limits, 502, None, never_in_trailers, like)

    def request(self, buf: bytes, start: int = 0, search_from: int = 0) -> tuple[RequestHead, int] | None:
        """Read the request head that begins at ``start``.

        Args:
            buf: what was received so far.
            start: where the message begins.
            search_from: ``len(buf)`` of the previous call for the same message; keeps the work linear when a head
                trickles in.

        Returns:
            the head and the position after it; None while it is incomplete.

        Raises:
            ProtocolError: the head is refused; as soon as its bytes cannot become a valid head any more.
        """
        if search_from <= start:
            scanner = self._scanner
            if scanner is not None:
                usual = scanner.request(buf, start)
                if usual is not None:
                    return _request_head(usual), usual[11]
        elif not self._worth_reading(buf, start, search_from):
            return None
        match = self._request(buf, start, start + self.limits.head_bytes_max)
        if match is None:
            # RFC 9112 section 2.2: one empty line before the request is ignored.
            start += 2 if buf.startswith(b"\r\n", start) else 0
            match = self._request(buf, start, start + self.limits.head_bytes_max)
            if match is None:
                self._examine_request(buf, start)
                return None
        fields, block, connection = self._fields.read(match[4])
        try:
            return self._request_head(match, fields, block, connection), match.end()
        except ProtocolError as error:
            error.fields = fields
            raise

    def _request_head(
        self, match: re.Match[bytes], fields: dict[bytes, bytes], block: bytes, connection: Connection | None
    ) -> RequestHead:
        method, target, minor_text, _ = match.groups()
        minor = 0 if minor_text == b"0" else 1
        get = fields.get
        if method in _METHODS_REFUSED:
            raise ProtocolError(501, "The method is not implemented.")
        host = get(b"host")
        if host is None or host not in self._hosts:
            host = self._checked_host(host, minor)
        if target[0] == _SLASH:
            path, _, query = target.partition(b"?")
        else:
            path, query, host = split_target(method, target, host, https=self._https)

        kind = _NO_BODY
        length = 0
        coding, length_text = get(b"transfer-encoding"), get(b"content-length")
        if coding is not None or length_text is not None:
            kind, length = _framing(coding, length_text, minor)
            if self.limits.body_bytes_max is not None and length > self.limits.body_bytes_max:
                raise ProtocolError(413, "The body is too large.")
            if length_text is not None:
                block = _with_length(block, length_text, length)
        expect = get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise ProtocolError(417, "Only the expectation 100-continue can be met.")
        upgrade = None
        keep_alive = minor == 1
        if connection is not None:
            keep_alive = not connection.close and (keep_alive or connection.keep_alive)
            if connection.upgrade and minor == 1 and kind is _NO_BODY:
                upgrade = self._allowed_upgrade(get(b"upgrade"))
        return RequestHead(
            method,
            target,
            path,
            query,
            host,
            minor,
            block,
            fields,
            kind,
            length,
            keep_alive,
            # RFC 9110 section 10.1.1: the expectation is ignored in HTTP/1.0, and without content.
            expect is not None and minor == 1 and kind is not _NO_BODY,
            upgrade,
            b"te" in fields and minor == 1 and b"trailers" in list_elements(fields[b"te"]),
            not self._marks.isdisjoint(fields),
        )

    def response(
        self, buf: bytes, request_method: bytes, start: int = 0, search_from: int = 0
    ) -> tuple[ResponseHead, int] | None:
        """Read the response head that begins at ``start`` and answers a ``request_method``; else as `request`.

        Raises:
            ProtocolError: always with status 502; ``answered`` and ``by_caller`` say more.
        """
        if search_from <= start:
            scanner = self._scanner
            if scanner is not None and request_method != b"HEAD":
                usual = scanner.response(buf, start)
                if usual is not None:
                    return _response_head(usual), usual[8]
        elif not self._worth_reading(buf, start, search_from):
            return None
        match = self._response(buf, start, start + self.limits.head_bytes_max)
        try:
            if match is None:
                self._examine_response(buf, start)
                return None
            return self._response_head(match, request_method), match.end()
        except ProtocolError as error:
            line = _ANY_STATUS_LINE.match(buf, start, start + self.limits.head_bytes_max)
            answered = int(line[2]) if line is not None else 0
            raise ProtocolError(502, error.reason, by_caller=error.by_caller, answered=answered) from None

    def _response_head(self, match: re.Match[bytes], request_method: bytes) -> ResponseHead:
        minor_text, status_text, reason, block = match.groups(b"")
        minor = 0 if minor_text == b"0" else 1
        status = int(status_text)
        fields, block, connection = self._fields.read(block)
        coding, length_text = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        keep_alive = minor == 1
        upgrade = None
        if connection is not None:
            keep_alive = not connection.close and (keep_alive or connection.keep_alive)
            upgrade = fields.get(b"upgrade") if connection.upgrade else None

        kind, length = BodyKind.UNTIL_CLOSE, 0
        if coding is not None or length_text is not None:
            if length_text is not None and b"," in length_text:
                length_text = _one_of_equal(length_text)
            kind, length = _framing(coding, length_text, minor)
            if length_text is not None:
                block = _with_length(block, fields[b"content-length"], length)
        if status < 200 or status == 204:
            # RFC 9110 section 8.6 and RFC 9112 section 6.1: neither field may be here. A length is taken out, and the
            # connection not used again if it is not 0. After an interim response, or where chunks may follow, that
            # does not help: nobody could tell where the next response begins.
            if coding is not None or (length and status < 200):
                raise ProtocolError(502, "A body is announced where none can be.")
            if length_text is not None:
                block = without(block, _CONTENT_LENGTH)
                keep_alive = keep_alive and length == 0
            kind, length = BodyKind.NONE, 0
        elif status == 304 or request_method == b"HEAD":
            kind, length = BodyKind.NONE, 0
        elif kind is BodyKind.UNTIL_CLOSE:
            keep_alive = False
        marked = not self._marks.isdisjoint(fields)
        return ResponseHead(status, reason, minor, block, fields, kind, length, keep_alive, upgrade, marked)

    def _checked_host(self, host: bytes | None, minor: int) -> bytes:
        """RFC 9112 section 3.2: one valid Host, or none in HTTP/1.0. Repeated ones were joined with a comma."""
        if host is None and minor == 0:
            return b""
        if host is None or not HOST.fullmatch(host):
            raise ProtocolError(400, "Host is missing, repeated or malformed.")
        if len(host) <= _HOST_BYTES_MAX:
            if len(self._hosts) >= _HOSTS_MAX:
                self._hosts.clear()
            self._hosts.add(host)
        return host

    def _allowed_upgrade(self, value: bytes | None) -> bytes | None:
        """Upgrade may be ignored at will (RFC 9110 section 7.8), so one that is not allowed is."""
        return value if value and self._upgrades.issuperset(list_elements(value)) else None

    def _worth_reading(self, buf: bytes, start: int, search_from: int) -> bool:
        """Whether the bytes since ``search_from`` may have completed the head, or spoilt it."""
        return (
            _CONTROL.search(buf, search_from) is not None
            or len(buf) // _EXAMINE_EVERY != search_from // _EXAMINE_EVERY
            or len(buf) - start >= self.limits.head_bytes_max
        )

    def _examine_request(self, buf: bytes, start: int) -> None:
        """Return if a head that did not match may still become one; else raise ProtocolError."""
        stop = min(len(buf), start + self.limits.head_bytes_max)
        if buf[start:stop] != b"\r":
            self._examine(buf, start, stop, request_line_fault(buf, start, stop, self._request_prefix))

    def _examine_response(self, buf: bytes, start: int) -> None:
        stop = min(len(buf), start + self.limits.head_bytes_max)
        self._examine(buf, start, stop, status_line_fault(buf, start, stop))

    def _examine(self, buf: bytes, start: int, stop: int, line_end: int | ProtocolError | None) -> None:
        fault = line_end
        if isinstance(line_end, int):
            fault = field_lines_fault(buf, line_end, stop, self._lines, self.limits.fields_max)
        if fault is None and stop - start == self.limits.head_bytes_max:
            fault = ProtocolError(431, "The header fields are too large.", by_caller=True)
        if isinstance(fault, ProtocolError):
            raise fault


def _request_head(parts: RequestParts) -> RequestHead:
    method, target, path, query, host, minor, block, fields, body, length, keep_alive, _, marked = parts
    return RequestHead(
        method, target, path, query, host, minor, block, fields, body, length, keep_alive, False, None, False, marked
    )


def _response_head(parts: ResponseParts) -> ResponseHead:
    status, reason, minor, block, fields, body, length, keep_alive, _, marked = parts
    return ResponseHead(status, reason, minor, block, fields, body, length, keep_alive, None, marked)


_CONTENT_LENGTH = frozenset({b"content-length"})


def _one_of_equal(text: bytes) -> bytes:
    """Of lengths that are repeated and valid and equal, one (RFC 9110 section 8.6); else ``text``."""
    lengths = [part.strip(b" \t") for part in text.split(b",")]
    valid = all(map(CONTENT_LENGTH.fullmatch, lengths)) and len(set(map(int, lengths))) == 1
    return lengths[0] if valid else text


def _with_length(block: bytes, text: bytes, length: int) -> bytes:
    """``block`` with its Content-Length as everybody reads it: once, in the usual letters, without leading zeros and
    odd white space. ``text``: its value as it came."""
    line = b"Content-Length: %d\r\n" % length
    if b"," not in text and (block.startswith(line) or b"\r\n" + line in block):
        return block
    lines: list[bytes] = []
    written = False
    for each in block.split(b"\r\n"):
        if each.partition(b":")[0].lower() != b"content-length":
            lines.append(each)
        elif not written:
            lines.append(line[:-2])
            written = True
    return b"\r\n".join(lines)


def _framing(coding: bytes | None, length_text: bytes | None, minor: int) -> tuple[BodyKind, int]:
    """How the body is framed by the fields that are there, of which there is at least one.

    Narrower than RFC 9112 section 6.3: only ``chunked``, once, without Content-Length, not in HTTP/1.0; or one
    Content-Length. Equal repeated lengths of a request are refused too, as they have no honest origin.
    """
    if coding is None:
        assert length_text is not None
        if not CONTENT_LENGTH.fullmatch(length_text):
            raise ProtocolError(400, "Content-Length is repeated or malformed.")
        length = int(length_text)
        return (BodyKind.LENGTH if length else BodyKind.NONE), length
    if length_text is not None:
        raise ProtocolError(400, "Both Content-Length and Transfer-Encoding are given.")
    if minor == 0:
        raise ProtocolError(400, "Transfer-Encoding is not for HTTP/1.0.")
    if coding.lower() != b"chunked":
        codings = [part.strip(b" \t") for part in coding.lower().split(b",")]
        if not all(map(TOKEN.fullmatch, codings)) or b"chunked" in codings[:-1]:
            raise ProtocolError(400, "Transfer-Encoding is malformed.")
        raise ProtocolError(501, "The transfer coding is not implemented.")
    return BodyKind.CHUNKED, 0
