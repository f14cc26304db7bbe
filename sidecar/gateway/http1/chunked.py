"""Chunked bodies (RFC 9112 section 7.1), read strictly and written anew."""

from __future__ import annotations

import re
from functools import cache

from sidecar.gateway.http1.body_rules import BodyRules, Piece
from sidecar.gateway.http1.grammar import CHUNK_SIZE_LINE, ProtocolError, field_lines, field_lines_fault

__all__ = ["ChunkedDecoder"]

_SIZE_LINE = re.compile(CHUNK_SIZE_LINE)
_CHUNK_END_AND_SIZE_LINE = re.compile(rb"\r\n" + CHUNK_SIZE_LINE)
# What may become a size line. It takes a few extensions that the line does not; they are refused with the line.
_PARTIAL_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}+(?:[\t ]++|(?:[\t ]*+;[\t -~\x80-\xff]*+)?+\r?+))?")
_PARTIAL_CHUNK_END = re.compile(rb"\r?+")
_SIZE_LINE_BYTES_MAX = 16 + len("\r\n")
# One text for both: which of them is noticed first depends on how the line was cut.
_BAD_SIZE_LINE = "A chunk's size line is malformed, or there are too many extensions."
# Above it a receiver that counts in signed 64-bit integers would see a negative size.
_CHUNK_BYTES_MAX = 2**63 - 1
# Below it a copy is cheaper than a memoryview and what a transport does with one.
_VIEW_BYTES_MIN = 4096


class ChunkedDecoder:
    """A chunked body (RFC 9112 section 7.1) as chunks again, or ``plain`` for a receiver that speaks HTTP/1.0.

    What is written is the sender's own bytes only where they are what this class would have written: sizes without
    leading zeros, no extensions, no trailer field that may not be forwarded. The rest is replaced.
    """

    __slots__ = (
        "_at_line",
        "_extension_bytes",
        "_held",
        "_in_trailers",
        "_left",
        "_plain",
        "_rules",
        "done",
        "leftover",
        "received",
    )

    def __init__(self, rules: BodyRules, *, plain: bool = False) -> None:
        self._rules = rules
        self._plain = plain
        self._left = 0  # bytes of the current chunk that have not come yet
        self._at_line = True  # the CRLF of the chunk before has been taken
        self._in_trailers = False
        self._held = b""  # an incomplete size line or trailer section; bounded by their limits
        self._extension_bytes = 0
        self.done = False
        self.leftover = b""
        self.received = 0

    def __repr__(self) -> str:
        return f"ChunkedDecoder(received={self.received}, left={self._left}, done={self.done})"

    def feed(self, data: bytes) -> list[Piece]:
        assert not self.done, "a complete body was fed"
        if self._left > len(data):
            self._left -= len(data)
            self.received += len(data)
            return [data]
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[Piece] = []
        stop = len(data)
        at = kept = 0  # data[kept:at] is to be written as it came
        while True:
            if self._left:
                end = min(at + self._left, stop)
                if self._plain:
                    pieces.append(_cut(data, at, end))
                self._left -= end - at
                self.received += end - at
                at = end
                if at == stop:
                    break
            if self._in_trailers:
                self._end(data, kept, at, pieces)
                return pieces
            match = (_SIZE_LINE if self._at_line else _CHUNK_END_AND_SIZE_LINE).match(data, at)
            if match is None:
                if not self._at_line and data.startswith(b"\r\n", at):
                    # The end of a chunk goes on at once: there are receivers that act on whole chunks only.
                    self._at_line = True
                    at += 2
                self._hold_size_line(data, at)
                break
            size_text, extension = match.groups()
            size = self._open_chunk(size_text, len(extension))
            if not self._plain and (extension or (size_text[0] == 0x30 and len(size_text) > 1)):
                if at > kept:
                    pieces.append(_cut(data, kept, at))
                pieces.append(b"%x\r\n" % size if self._at_line else b"\r\n%x\r\n" % size)
                kept = match.end()
            at = match.end()
            self._at_line = False
        if not self._plain and at > kept:
            pieces.append(_cut(data, kept, at))
        return pieces

    def eof(self) -> list[Piece]:
        if not self.done:
            raise ProtocolError(self._rules.refuse_with, "The chunked body is not complete.")
        return []

    def _open_chunk(self, size_text: bytes, extension_bytes: int) -> int:
        """Check a size line against the limits before a byte of its chunk is taken."""
        rules = self._rules
        self._extension_bytes += extension_bytes
        if self._extension_bytes > rules.limits.chunk_extension_bytes_max:
            raise ProtocolError(rules.refuse_with, _BAD_SIZE_LINE)
        size = int(size_text, 16)
        if size > _CHUNK_BYTES_MAX:
            raise ProtocolError(rules.refuse_with, "A chunk is too large.")
        if rules.body_bytes_max is not None and self.received + size > rules.body_bytes_max:
            raise ProtocolError(413, "The body is too large.")
        self._left = size
        self._in_trailers = size == 0
        return size

    def _hold_size_line(self, data: bytes, at: int) -> None:
        """Keep an incomplete size line for the next piece, unless it cannot become one any more."""
        partial = (_PARTIAL_SIZE_LINE if self._at_line else _PARTIAL_CHUNK_END).fullmatch(data, at)
        line_bytes_max = _SIZE_LINE_BYTES_MAX + self._rules.limits.chunk_extension_bytes_max
        if partial is None or len(data) - at > line_bytes_max:
            raise ProtocolError(self._rules.refuse_with, _BAD_SIZE_LINE)
        self._held = data[at:]

    def _end(self, data: bytes, kept: int, at: int, pieces: list[Piece]) -> None:
        """Take the trailer section that begins at ``at`` (RFC 9112 section 7.1.2), if it is complete."""
        if data.startswith(b"\r\n", at):
            end = at + 2
            forwarded = section = b""
        else:
            limits = self._rules.limits
            lines = _trailer_lines(limits.trailer_fields_max)
            section_stop = at + limits.trailer_bytes_max
            match = lines.match(data, at, section_stop)
            assert match is not None, "no line is a match too"
            section = match[0]
            end = match.end() + 2
            if not section or end > section_stop or not data.startswith(b"\r\n", match.end()):
                self._hold_trailers(data, at, lines)
                if not self._plain and at > kept:
                    pieces.append(_cut(data, kept, at))
                return
            forwarded = self._forwarded(section)
        self.done = True
        self.leftover = data[end:]
        if self._plain:
            return
        if forwarded == section:
            pieces.append(_cut(data, kept, end))
        else:
            pieces.append(data[kept:at] + forwarded + b"\r\n")

    def _forwarded(self, section: bytes) -> bytes:
        forwards = self._rules.forwards_trailer
        return b"".join(line for line in section.splitlines(keepends=True) if forwards(line.partition(b":")[0]))

    def _hold_trailers(self, data: bytes, at: int, lines: re.Pattern[bytes]) -> None:
        """Keep an incomplete trailer section for the next piece, unless it is wrong already."""
        limits = self._rules.limits
        stop = min(len(data), at + limits.trailer_bytes_max)
        fault = field_lines_fault(data, at, stop, lines, limits.trailer_fields_max)
        if fault is None and stop - at == limits.trailer_bytes_max:
            fault = ProtocolError(431, "The trailers are too large.")
        if fault is not None:
            from_client = self._rules.refuse_with == 400
            raise fault if from_client else ProtocolError(self._rules.refuse_with, fault.reason)
        self._held = data[at:]


@cache
def _trailer_lines(fields_max: int) -> re.Pattern[bytes]:
    return re.compile(field_lines(fields_max))


def _cut(data: bytes, start: int, end: int) -> Piece:
    if end - start < _VIEW_BYTES_MIN or (start == 0 and end == len(data)):
        return data[start:end]  # the whole of an object is that object, not a copy
    return memoryview(data)[start:end]
