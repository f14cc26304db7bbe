"""Hypothesis strategies for HTTP messages: well-formed ones, and ones that somebody tampered with."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

__all__ = ["Message", "chunked_bodies", "cuts", "pieces_of", "requests", "responses", "tampered"]

_TOKEN_CHARS = b"!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
# Methods that llhttp knows; it refuses all others, which RFC 9110 section 9.1 does not ask for.
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND")


@dataclass(frozen=True)
class Message:
    """``content`` is the body without framing, None if it ends with the connection."""

    data: bytes
    content: bytes | None


_TARGET_CHARS = st.sampled_from(b"/abcXYZ019-._~:@!$&'()*+,;=%?|{}\"\\^[]")
_TARGETS = st.lists(_TARGET_CHARS, max_size=8).map(lambda chars: b"/" + bytes(chars))
_VALUE_CHARS = st.sampled_from(b'abc019 \t,;:="\\()/~!\x80\xe9\xff')
_VALUES = st.lists(_VALUE_CHARS, max_size=5).map(bytes)
_NAMES = st.lists(st.sampled_from(_TOKEN_CHARS), min_size=1, max_size=3).map(lambda chars: b"x-" + bytes(chars))
_OTHER_LINES = st.tuples(_NAMES, _VALUES)
_KNOWN_LINES = st.sampled_from(
    (
        (b"Connection", b"close"),
        (b"Connection", b"Keep-Alive, x-a"),
        (b"Keep-Alive", b"timeout=5"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x-a"),
        (b"traceparent", b"00-1"),
        (b"X-API-Key", b"k"),
        (b"X-Forwarded-Port", b"1"),
        (b"X-Forwarded-Key", b"k"),
        (b"X-Real-IP", b"1"),
        (b"Cookie", b"a=b; c=d"),
        (b"Accept", b"*/*"),
    )
)


_SPACES = ((b"", b""), (b" ", b""), (b" ", b""), (b"\t", b" "), (b"  ", b"\t"))
_SPELLINGS = st.tuples(st.sampled_from((bytes, bytes.lower, bytes.upper, bytes.swapcase)), st.sampled_from(_SPACES))


@st.composite
def _lines(draw: st.DrawFn, *framing: tuple[bytes, bytes]) -> bytes:
    """Field lines with those of ``framing`` among them, names in any case, white space around the values."""
    lines = draw(st.lists(st.one_of(_KNOWN_LINES, _OTHER_LINES), max_size=4))
    for line in framing:
        lines.insert(draw(st.integers(0, len(lines))), line)
    block = b""
    for name, value in lines:
        letters, (before, after) = draw(_SPELLINGS)
        block += letters(name) + b":" + before + value + after + b"\r\n"
    return block


@st.composite
def chunked_bodies(draw: st.DrawFn, *, extensions: bool = True) -> Message:
    chunks = draw(st.lists(st.binary(min_size=1, max_size=12), max_size=4))
    data = b""
    for chunk in [*chunks, b""]:
        size = draw(st.sampled_from((b"%x", b"%X", b"0%x", b"%016x"))) % len(chunk)
        extension = draw(st.sampled_from((b"", b"", b"", b";a", b" ;\ta = b", b';a="\\"; b"'))) if extensions else b""
        data += size + extension + b"\r\n"
        data += chunk + b"\r\n" if chunk else b""
    trailers = draw(st.lists(st.sampled_from((b"x-t: 1\r\n", b"Content-Digest:\t\r\n", b"Host: b\r\n")), max_size=2))
    return Message(data + b"".join(trailers) + b"\r\n", b"".join(chunks))


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[tuple[tuple[bytes, bytes], ...], Message]:
    """Framing fields and the body that they frame."""
    kind = draw(st.sampled_from(("none", "length", "chunked")))
    if kind == "chunked":
        return ((b"Transfer-Encoding", b"chunked"),), draw(chunked_bodies())
    if kind == "none":
        return (), Message(b"", b"")
    content = draw(st.binary(max_size=20))
    return ((b"Content-Length", b"%d" % len(content)),), Message(content, content)


@st.composite
def requests(draw: st.DrawFn) -> Message:
    """Requests of HTTP/1.1 that must be accepted."""
    framing, body = draw(_bodies())
    method = draw(st.sampled_from(_METHODS))
    target = draw(_TARGETS)
    lines = draw(_lines((b"Host", b"api.bank.example"), *framing))
    return Message(method + b" " + target + b" HTTP/1.1\r\n" + lines + b"\r\n" + body.data, body.content)


@st.composite
def responses(draw: st.DrawFn) -> Message:
    """Responses to GET that must be accepted, with a body unless the status forbids it."""
    status = draw(st.sampled_from((200, 201, 404, 500, 599)))
    framing, body = draw(_bodies())
    lines = draw(_lines(*framing))
    start = draw(st.sampled_from((b"HTTP/1.1 %d OK\r\n", b"HTTP/1.1 %d \r\n", b"HTTP/1.1 %d caf\xe9\r\n")))
    return Message(start % status + lines + b"\r\n" + body.data, body.content if framing else None)


# What smuggling is made of.
_FRAGMENTS = (
    *(bytes((byte,)) for byte in b"\r\n\0 \t\x0b\x0c\x7f\x85\xff:,;0+-x_#"),
    b"\r\n",
    b"\r\n ",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Content_Length: 3\r\n",
    b"content-length:\t03 \r\n",
    b"X_Forwarded_For: a\r\n",
    b"x-forwarded-by: a\r\n",
    b"X_Real-IP: a\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b"Connection: host\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"http://api.bank.example",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
)


@st.composite
def tampered(draw: st.DrawFn, messages: st.SearchStrategy[Message]) -> bytes:
    """One of ``messages`` with a few fragments put in or bytes changed; often at the beginning of a line."""
    data = draw(messages).data
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            ends = [at + 2 for at in range(len(data)) if data.startswith(b"\r\n", at)] or [0]
            at = draw(st.sampled_from(ends))
        else:
            at = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
        data = data[:at] + draw(st.sampled_from(_FRAGMENTS)) + data[at + cut :]
    return data


def cuts() -> st.SearchStrategy[list[float]]:
    """Places at which a message is cut, as parts of its length."""
    return st.lists(st.floats(0, 1), max_size=5)


def pieces_of(data: bytes, places: list[float]) -> list[bytes]:
    ends = [*sorted(int(place * len(data)) for place in places), len(data)]
    pieces = [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [piece for piece in pieces if piece]
