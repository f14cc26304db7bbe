"""What a head says."""

from __future__ import annotations

from sidecar.gateway.http1.body import BodyKind

__all__ = ["RequestHead", "ResponseHead"]

_SLASH = 0x2F

# The heads are values, yet no frozen dataclasses: two are made for every request, and a frozen one of fourteen fields
# takes five times as long. Compiled, their attributes are read without a look into a dictionary.


class RequestHead:
    """The head of a request that may be passed on.

    Attributes:
        method: as received; methods are case-sensitive.
        target: as received.
        path: of the target, without query, not normalised; ``*`` for OPTIONS of the whole server.
        query: without the question mark.
        host: the authority asked for, with its port; empty only in HTTP/1.0.
        version_minor: 0 or 1; 1 for a higher one.
        block: the field lines to forward, each with its CRLF, without the empty line after them. Content-Length is
            in it, in canonical form; Transfer-Encoding, Connection, Upgrade and TE are not.
        fields: values of the fields that the parser was told are interesting or dropped, and of those it needs
            itself, by lower-case name, without white space around them; values of a repeated field are joined with
            a comma and a space.
        body: NONE, LENGTH or CHUNKED.
        length: bytes, for LENGTH.
        keep_alive: the client lets the connection stay open.
        expect_continue: the client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
        upgrade: value of Upgrade, if Connection names it, all its protocols are let through, and there is no body.
        te_trailers: the client reads trailers (``TE: trailers``, RFC 9110 section 10.1.4).
        marked: one of the fields is a mark of the parser's.
    """

    __slots__ = (
        "block", "body", "expect_continue", "fields", "host", "keep_alive", "length", "marked", "method", "path",
        "query", "target", "te_trailers", "upgrade", "version_minor",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, path: bytes, query: bytes, host: bytes, version_minor: int, block: bytes,
        fields: dict[bytes, bytes], body: BodyKind, length: int, keep_alive: bool, expect_continue: bool = False,
        upgrade: bytes | None = None, te_trailers: bool = False, marked: bool = False,
    ) -> None:  # fmt: skip
        self.method = method
        self.target = target
        self.path = path
        self.query = query
        self.host = host
        self.version_minor = version_minor
        self.block = block
        self.fields = fields
        self.body = body
        self.length = length
        self.keep_alive = keep_alive
        self.expect_continue = expect_continue
        self.upgrade = upgrade
        self.te_trailers = te_trailers
        self.marked = marked

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestHead) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RequestHead({self.method!r}, {self.target!r}, {self.block!r})"

    def _values(self) -> tuple[object, ...]:
        return (
            self.method, self.target, self.path, self.query, self.host, self.version_minor, self.block, self.fields,
            self.body, self.length, self.keep_alive, self.expect_continue, self.upgrade, self.te_trailers,
            self.marked,
        )  # fmt: skip

    @property
    def origin_target(self) -> bytes:
        """The target for an origin server (RFC 9112 section 3.2.1): as received unless that was absolute-form."""
        if self.target[0] == _SLASH or self.path == b"*":
            return self.path if self.path == b"*" else self.target
        return self.path + b"?" + self.query if b"?" in self.target else self.path


class ResponseHead:
    """The head of a response that may be passed on; the attributes are those of `RequestHead`.

    ``body`` is NONE for 1xx, 204, 304 and for answers to HEAD, whatever the fields say. ``upgrade`` is the value of
    Upgrade if Connection names it, for any status.
    """

    __slots__ = (
        "block", "body", "fields", "keep_alive", "length", "marked", "reason", "status", "upgrade", "version_minor",
    )  # fmt: skip

    def __init__(
        self, status: int, reason: bytes, version_minor: int, block: bytes, fields: dict[bytes, bytes], body: BodyKind,
        length: int, keep_alive: bool, upgrade: bytes | None = None, marked: bool = False,
    ) -> None:  # fmt: skip
        self.status = status
        self.reason = reason
        self.version_minor = version_minor
        self.block = block
        self.fields = fields
        self.body = body
        self.length = length
        self.keep_alive = keep_alive
        self.upgrade = upgrade
        self.marked = marked

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseHead) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ResponseHead({self.status}, {self.reason!r}, {self.block!r})"

    def _values(self) -> tuple[object, ...]:
        return (
            self.status, self.reason, self.version_minor, self.block, self.fields, self.body, self.length,
            self.keep_alive, self.upgrade, self.marked,
        )  # fmt: skip
