"""Grammar of Envoy's ``X-Forwarded-Client-Cert``.

Source: Envoy documentation, "HTTP header manipulation", x-forwarded-client-cert. A comma-separated list of
elements, one per proxy, oldest first; an element is a semicolon-separated list of ``key=value``; keys ignore
case; a value with a separator in it stands in double quotes.

Two things follow from what Envoy really writes. It puts the subject in quotes as RFC 2253 gives it, so the
backslashes inside are the name's own and are left for its parser. And it writes URI and DNS without quotes,
although they come from the caller's certificate and may hold separators and quotes. Only Issuer follows them; so
nothing that says who the caller is may follow, and Subject and Cert are accepted only in quotes.

Since 1.38 it can write JSON instead (``set_current_client_cert_details.format``): an array of objects with the same
names in lower case, in which PEM is not encoded, and by, chain, uri and dns are arrays. Tried on Envoy 1.40.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import orjson

PAIRS_MAX: Final = 64
"""Per element; a certificate has a handful of names."""

_KEY = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9_-]{0,31})=")
_QUOTED = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+)"[ \t]*(?=[;,]|\Z)')
_UNQUOTED = re.compile(r'([^",;\x00-\x1f\x7f]*+)(?=[;,]|\Z)')

_ONCE: Final = frozenset({"hash", "cert", "chain", "subject"})
_FREE: Final = frozenset({"uri", "dns"})
"""What a caller's certificate can say at will."""
_AFTER_FREE: Final = _FREE | {"issuer"}
_LISTS: Final = frozenset({"by", "chain", "uri", "dns"})
_ONLY_QUOTED: Final = frozenset({"cert", "subject"})


class XfccError(ValueError):
    """The header is not what Envoy writes. The message says where; it repeats nothing of the header."""


@dataclass(frozen=True, slots=True)
class Element:
    """What one proxy says of the certificate that its client showed.

    ``subject`` is a distinguished name in RFC 2253 text, ``cert`` and ``chain`` are PEM in percent-encoding,
    ``hash`` is SHA-256 in hexadecimal. Keys that Envoy may add one day are skipped.
    """

    by: tuple[str, ...] = ()
    hash: str | None = None
    cert: str | None = None
    chain: str | None = None
    subject: str | None = None
    uri: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


def parse(header: bytes, *, bytes_max: int, elements_max: int) -> tuple[Element, ...]:
    """Read the header into its elements, oldest first. Raises ``XfccError`` only."""
    if len(header) > bytes_max:
        raise XfccError(f"longer than {bytes_max} bytes")
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise XfccError("not UTF-8") from None
    if text.startswith("["):
        return _from_json(header, elements_max)
    elements: list[Element] = []
    at, separator = 0, ","
    while separator == ",":
        if len(elements) == elements_max:
            raise XfccError(f"more than {elements_max} elements")
        element, at, separator = _element(text, at)
        elements.append(element)
    return tuple(elements)


def _from_json(header: bytes, elements_max: int) -> tuple[Element, ...]:
    try:
        rows = orjson.loads(header)
    except orjson.JSONDecodeError:
        raise XfccError("not JSON, which it begins like") from None
    if len(rows) > elements_max:
        raise XfccError(f"more than {elements_max} elements")
    if not rows:
        raise XfccError("no element")
    return tuple(_json_element(row, at) for at, row in enumerate(rows))


def _json_element(row: object, at: int) -> Element:
    if not isinstance(row, dict) or len(row) > PAIRS_MAX:
        raise XfccError(f"element {at} is not an object of at most {PAIRS_MAX} members")
    found: dict[str, list[str]] = {}
    for name, value in row.items():
        key = name.lower()
        values = value if key in _LISTS else [value]
        is_text = isinstance(values, list) and len(values) <= PAIRS_MAX and all(isinstance(v, str) for v in values)
        if not is_text or key in found:
            raise XfccError(f"a member of element {at} that is not text, not an array of texts, or there twice")
        # As in the other form, for one reader.
        found[key] = [quote("".join(values))] if key in ("cert", "chain") else list(values)
    return _make_element(found)


def _element(text: str, at: int) -> tuple[Element, int, str]:
    found: dict[str, list[str]] = {}
    for _ in range(PAIRS_MAX):
        key, value, at = _pair(text, at)
        values = found.setdefault(key, [])
        if values and key in _ONCE:
            raise XfccError(f"a second {key} at {at}")
        if key not in _AFTER_FREE and not _FREE.isdisjoint(found):
            raise XfccError(f"a {key} that follows the certificate's URI or DNS names at {at}")
        values.append(value)
        separator = text[at : at + 1]
        at += 1
        if separator != ";":
            return _make_element(found), at, separator
    raise XfccError(f"more than {PAIRS_MAX} pairs in an element")


def _pair(text: str, at: int) -> tuple[str, str, int]:
    match = _KEY.match(text, at)
    if match is None:
        raise XfccError(f"no key and equals sign at {at}")
    key, at = match[1].lower(), match.end()
    if text[at : at + 1] == '"':
        match = _QUOTED.match(text, at)
        if match is None:
            raise XfccError(f"a quoted value that does not end well at {at}")
        value = match[1]
        return key, value if key == "subject" else value.replace('\\"', '"'), match.end()
    match = _UNQUOTED.match(text, at)
    if match is None:
        raise XfccError(f"a character that needs quotes after {at}")
    if key in _ONLY_QUOTED:
        raise XfccError(f"a {key} without quotes at {at}")
    return key, match[1].rstrip(" \t"), match.end()


def _make_element(found: dict[str, list[str]]) -> Element:
    def once(key: str) -> str | None:
        values = found.get(key)
        return values[0] if values else None

    return Element(
        by=tuple(found.get("by", ())),
        hash=once("hash"),
        cert=once("cert"),
        chain=once("chain"),
        subject=once("subject"),
        uri=tuple(found.get("uri", ())),
        dns=tuple(found.get("dns", ())),
    )
