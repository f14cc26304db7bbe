"""Header fields of one message: which of them are looked at, and which go on (RFC 9110 sections 5 and 7.6.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.gateway.http1.grammar import CONTROL_IN_VALUE, CONTROLS, TOKEN, ProtocolError, fold
from sidecar.gateway.http1.name_patterns import NO_PATTERNS, NamePatterns

__all__ = ["HOP_BY_HOP", "NEVER_CONNECTION_OPTIONS", "Connection", "FieldReader", "list_elements", "without"]

#: Fields that concern one connection only (RFC 9110 section 7.6.1). Trailer is forwarded (section 6.6.2).
HOP_BY_HOP = frozenset(
    b"""connection keep-alive proxy-connection te transfer-encoding upgrade proxy-authenticate
    proxy-authorization""".split()
)

#: A client that has the gateway remove these as "hop-by-hop" hides from the API what the gateway acted on.
#: RFC 9110 section 7.6.1 forbids to name fields that are meant for all recipients.
NEVER_CONNECTION_OPTIONS = frozenset(
    b"""host content-length transfer-encoding expect authorization cookie content-type content-encoding
    content-range cache-control date via forwarded x-forwarded-for x-forwarded-host x-forwarded-proto
    x-real-ip""".split()
)

# Framing needs these, whatever else is asked for.
_ALWAYS_READ = HOP_BY_HOP | {b"host", b"content-length", b"expect"}

# Spellings of names and values of Connection are remembered up to these numbers and lengths, so that what clients
# make up costs no more memory than this.
_STRIPPED = (b"", True)
_NAMES_MAX, _CONNECTIONS_MAX, _REMEMBERED_BYTES_MAX = 1024, 256, 64
# Each option of Connection takes time to be looked at; beside 100 fields nobody means more.
_OPTIONS_MAX = 256


@dataclass(frozen=True, slots=True)
class Connection:
    """A value of Connection. ``names`` are fields to be taken out besides the hop-by-hop ones."""

    close: bool
    keep_alive: bool
    upgrade: bool
    names: frozenset[bytes]


class _Names(dict[bytes, tuple[bytes, bool] | None]):
    """Field names as spelled. Known ones to their lower-case name and whether they are dropped, all others to None.
    Those that are dropped for what they are like have no name, as nobody wants their values."""

    def __init__(
        self, known: frozenset[bytes], dropped: frozenset[bytes], like: NamePatterns, *, plain_passes: bool
    ) -> None:
        super().__init__()
        self._known = {name: (name, name in dropped) for name in known}
        self._folded = {fold(name): name for name in known}
        self._like = like
        self._plain_passes = plain_passes
        self[b""] = None  # what follows the last CRLF of a block

    def __missing__(self, spelled: bytes) -> tuple[bytes, bool] | None:
        lower = spelled.lower()
        known = self._known.get(lower)
        if known is None:
            # CGI, WSGI and their like read X_TPP_Id and X-TPP-Id as the same field.
            folded = fold(lower)
            if self._like.match(folded):
                if folded != lower or not self._plain_passes:
                    known = _STRIPPED
            elif like := self._folded.get(folded):
                raise ProtocolError(400, f"A header field's name can be mistaken for {like.decode()}.")
        if len(spelled) <= _REMEMBERED_BYTES_MAX:
            if len(self) >= _NAMES_MAX:
                self.clear()
                self[b""] = None
            self[spelled] = known
        return known


class FieldReader:
    """Reads blocks of field lines that are valid by the grammar, or by its loose variant.

    Args:
        interesting: lower-case names of fields whose values are wanted.
        drop: lower-case names of fields that are not forwarded, besides the hop-by-hop ones; wanted as well.
        like: names that are not forwarded in any spelling, unless they are in ``interesting``.
        plain_passes: of those, what is written with hyphens goes on.

    Raises:
        ValueError: a name is no field name in lower case.
    """

    def __init__(
        self,
        interesting: Iterable[bytes],
        drop: Iterable[bytes],
        like: NamePatterns = NO_PATTERNS,
        *,
        plain_passes: bool = False,
    ) -> None:
        dropped = frozenset(drop)
        #: The names given.
        self.named = frozenset(interesting) | dropped
        for name in self.named:
            if name != name.lower() or not TOKEN.fullmatch(name):
                raise ValueError(f"{name!r} is not a field name in lower case")
        #: All names whose values are wanted, with whether their lines are dropped.
        self.known = {name: name in dropped or name in HOP_BY_HOP for name in self.named | _ALWAYS_READ}
        self._names = _Names(self.named | _ALWAYS_READ, dropped | HOP_BY_HOP, like, plain_passes=plain_passes)
        self._like = like
        self._protected = (self.named - HOP_BY_HOP) | NEVER_CONNECTION_OPTIONS
        self._connections: dict[bytes, Connection] = {}

    def read(self, block: bytes) -> tuple[dict[bytes, bytes], bytes, Connection | None]:
        """The wanted fields of ``block``, the lines of it that are forwarded, and what Connection says.

        Raises:
            ProtocolError: 400, a value has a control character, a name imitates a known one, Connection is malformed
                or names what it may not.
        """
        fields: dict[bytes, bytes] = {}
        names = self._names
        dropped_lines: list[bytes] = []
        lines = block.split(b"\r\n")
        if len(block) - len(block.translate(None, CONTROLS)) != 2 * (len(lines) - 1):
            raise ProtocolError(400, CONTROL_IN_VALUE, by_caller=True)
        for line in lines:
            name, _, value = line.partition(b":")
            known = names[name]
            if known is not None:
                lower, dropped = known
                if lower:
                    value = value.strip()  # the grammar leaves no other white space than SP and HTAB
                    if lower in fields:
                        value = fields[lower] + b", " + value
                    fields[lower] = value
                if dropped:
                    dropped_lines.append(line)
        if not dropped_lines:
            return fields, block, None
        for line in dropped_lines:
            # An equal line has the same name, so it does not matter which of them goes.
            lines.remove(line)
        block = b"\r\n".join(lines)
        text = fields.get(b"connection")
        if text is None:
            return fields, block, None
        connection = self._connections.get(text) or self._read_connection(text)
        if connection.names:
            block = without(block, connection.names)
        return fields, block, connection

    def _read_connection(self, text: bytes) -> Connection:
        if text.count(b",") > _OPTIONS_MAX:
            raise ProtocolError(400, "Connection is malformed.")
        options = frozenset(list_elements(text))
        for option in options:
            if not TOKEN.fullmatch(option):
                raise ProtocolError(400, "Connection is malformed.")
            folded = fold(option)
            if folded in self._protected or self._like.match(folded):
                raise ProtocolError(400, f"Connection names {folded.decode()}, which is not for one connection.")
        connection = Connection(
            close=b"close" in options,
            keep_alive=b"keep-alive" in options,
            upgrade=b"upgrade" in options,
            names=options - HOP_BY_HOP - {b"close"},
        )
        if len(text) <= _REMEMBERED_BYTES_MAX:
            if len(self._connections) >= _CONNECTIONS_MAX:
                self._connections.clear()
            self._connections[text] = connection
        return connection


def list_elements(value: bytes) -> list[bytes]:
    """Elements of a comma-separated list in lower case; empty ones are ignored (RFC 9110 section 5.6.1.2)."""
    return [element for part in value.lower().split(b",") if (element := part.strip(b" \t"))]


def without(block: bytes, names: frozenset[bytes]) -> bytes:
    """The lines of ``block`` whose lower-case name is not in ``names``."""
    lines = block.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names)
