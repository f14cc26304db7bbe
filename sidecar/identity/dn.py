"""Distinguished names in text (RFC 4514), read as leniently as RFC 2253 section 4 asks: spaces, "OID.".

The quoted values of RFC 1779 are refused. No writer of today makes them, and inside an
X-Forwarded-Client-Cert value, which has quotes of its own, they would let two readers disagree about where a
name ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

TEXT_MAX: Final = 8192
"""Characters; subjects of qualified certificates have 100 to 300."""
ATTRIBUTES_MAX: Final = 64

# attributeType = descr / numericoid; descr = keystring (RFC 4512 section 1.4)
_TYPE = re.compile(r" *(?:OID\.)?([a-z][a-z0-9-]*|\d+(?:\.\d+)+) *= *", re.IGNORECASE | re.ASCII)
# hexstring = SHARP 1*hexpair
_HEXSTRING = re.compile(r"#((?:[0-9a-f]{2})+) *(?=[,+]|\Z)", re.IGNORECASE)
# Everything that stands for itself within a value; RFC 4514 wants the rest escaped.
_PLAIN = re.compile(r'[^\x00",+;<>\\]+')
# pair = ESC ( ESC / special / hexpair )
_PAIR = re.compile(r'\\(?:([0-9a-f]{2})|([ "#+,;<=>\\]))', re.IGNORECASE)

_STRING_TAGS: Final = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x1E: "utf-16-be"}


class DnError(ValueError):
    """The text is not a distinguished name. The message says where; it repeats nothing of the text."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """``type`` in lower case, a short name or a dotted OID; ``value`` is bytes if its DER is no text."""

    type: str
    value: str | bytes


#: Relative names from left to right; several attributes in one are joined by "+" in the text.
Name = tuple[tuple[Attribute, ...], ...]


def parse(text: str) -> Name:
    """Read a distinguished name; the empty text is the empty name. Raises ``DnError`` only."""
    if len(text) > TEXT_MAX:
        raise DnError(f"longer than {TEXT_MAX} characters")
    if not text.strip(" "):
        return ()
    relative_names: list[tuple[Attribute, ...]] = []
    attributes: list[Attribute] = []
    at = count = 0
    while True:
        attribute, at = _attribute(text, at)
        attributes.append(attribute)
        count += 1
        if count > ATTRIBUTES_MAX:
            raise DnError(f"more than {ATTRIBUTES_MAX} attributes")
        separator = text[at : at + 1]
        if separator != "+":
            relative_names.append(tuple(attributes))
            attributes = []
        if separator == "":
            return tuple(relative_names)
        if separator not in ",+":
            raise DnError(f"a character that must be escaped at {at}")
        at += 1


def values_of(name: Name, *types: str) -> tuple[str | bytes, ...]:
    """Answer the values of every attribute whose type is one of ``types``, wherever it stands."""
    wanted = {t.lower() for t in types}
    return tuple(attribute.value for relative in name for attribute in relative if attribute.type in wanted)


def _attribute(text: str, at: int) -> tuple[Attribute, int]:
    match = _TYPE.match(text, at)
    if match is None:
        raise DnError(f"no attribute type at {at}")
    at = match.end()
    kind = match[1].lower()
    if text[at : at + 1] == "#":
        value, at = _hexstring(text, at)
        return Attribute(kind, value), at
    plain, at = _string(text, at)
    return Attribute(kind, plain), at


def _string(text: str, at: int) -> tuple[str, int]:
    start = at
    value = bytearray()
    kept = 0  # what follows it are spaces that nobody escaped: they are not part of the value
    while True:
        if match := _PLAIN.match(text, at):
            chunk = _utf8(match[0], at)
            value += chunk
            if significant := chunk.rstrip(b" "):
                kept = len(value) - len(chunk) + len(significant)
        elif match := _PAIR.match(text, at):
            value += bytes.fromhex(match[1]) if match[1] else match[2].encode("ascii")
            kept = len(value)
        elif text[at : at + 1] == "\\":
            raise DnError(f"a backslash that escapes nothing at {at}")
        else:
            break
        at = match.end()
    try:
        return value[:kept].decode("utf-8"), at
    except UnicodeDecodeError:
        raise DnError(f"escapes that are no UTF-8 in the value at {start}") from None


def _utf8(chunk: str, at: int) -> bytes:
    try:
        return chunk.encode("utf-8")
    except UnicodeEncodeError:
        raise DnError(f"a lone surrogate after {at}") from None


def _hexstring(text: str, at: int) -> tuple[str | bytes, int]:
    match = _HEXSTRING.match(text, at)
    if match is None:
        raise DnError(f"odd hexadecimal digits at {at}")
    der = bytes.fromhex(match[1])
    content = _der_content(der, at)
    encoding = _STRING_TAGS.get(der[0])
    if encoding is None:
        return der, match.end()
    try:
        return content.decode(encoding), match.end()
    except UnicodeDecodeError:
        raise DnError(f"bytes at {at} that are not what their DER tag says") from None


def _der_content(der: bytes, at: int) -> bytes:
    """Answer what follows tag and length (X.690 section 8.1.3, definite form): all the rest."""
    if len(der) >= 2:
        first, header = der[1], 2
        if first & 0x80:
            octets = first & 0x7F
            header += octets
            length = int.from_bytes(der[2:header], "big") if 1 <= octets <= 2 else -1
        else:
            length = first
        if len(der) == header + length:
            return der[header:]
    raise DnError(f"bytes at {at} that are not one DER value")
