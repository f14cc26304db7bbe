"""What Go's ``url.Parse`` takes for a URL reference, without I/O.

Servers in Go read URI references with it, and it is neither RFC 3986 nor ``urllib``: ``a b`` is a path, ``a:b c`` is
opaque, ``1:b`` is an error. This follows ``net/url/url.go`` and ``net/netip/netip.go`` of Go 1.26, check by check, and
has Go's words for what is wrong. Earlier Go takes a few hosts more (``http://a:b:1``, ``http://[x]``).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_USERINFO: Final = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")

_NOT_IN_HOST: Final = re.compile(r"""[^A-Za-z0-9!$&'()*+,;=:\[\]<>"_.~%\x80-\U0010ffff-]""")
"""ASCII that neither a host nor a zone may have; what is not ASCII passes."""

_ZONE_ESCAPED: Final = re.compile(r"""[A-Za-z0-9!$&'()*+,;=:\[\]<>"_.~% -]""")
"""What a zone may have escaped: what it may have as it is, a space, and ``%``."""

_ASCII_MAX: Final = 0x7F


class GoUrlError(ValueError):
    """Go's ``url.Parse`` refuses a text. The message says why, in Go's words."""


def check_go_url(text: str) -> None:
    """Returns if ``url.Parse(text)`` succeeds in Go. An empty text succeeds.

    Raises:
        GoUrlError: it does not.
    """
    url, _, fragment = text.partition("#")
    if _CONTROL.search(url):
        raise GoUrlError("invalid control character in URL")
    if url.startswith(":"):
        raise GoUrlError("missing protocol scheme")
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    rest = (url[found.end() :] if found else url).partition("?")[0]
    if rest.startswith("/"):
        _check_hierarchy(scheme, rest)
    elif not scheme:
        if ":" in rest.partition("/")[0]:
            raise GoUrlError("first path segment in URL cannot contain colon")
        _check_escapes(rest)
    # What follows a scheme without a slash is opaque: nothing in it is looked at.
    _check_escapes(fragment)


def _check_hierarchy(scheme: str, rest: str) -> None:
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        _check_authority(scheme, authority)
        rest = slash + path
    _check_escapes(rest)


def _check_authority(scheme: str, authority: str) -> None:
    userinfo, _, host = authority.rpartition("@")
    _check_host(scheme, host)
    if not _USERINFO.fullmatch(userinfo):
        raise GoUrlError("invalid userinfo")
    for part in userinfo.split(":", 1):
        _check_escapes(part)


def _check_host(scheme: str, host: str) -> None:
    bracket = host.rfind("[")
    if bracket > 0:
        raise GoUrlError("invalid IP-literal")
    if bracket == 0:
        _check_ip_literal(host)
        return
    first = host.find(":")
    if first >= 0:
        # Lists of hosts, each with a port, are known from databases; only http and https have one host.
        _check_port(host[first if scheme in ("http", "https") else host.rfind(":") :])
    _check_host_name(host)


def _check_ip_literal(host: str) -> None:
    end = host.rfind("]")
    if end < 0:
        raise GoUrlError("missing ']' in host")
    _check_port(host[end + 1 :])
    address, percent, zone = host[1:end].partition("%25")
    _check_host_name(address)
    if percent:
        _check_zone(zone)
    # An escaped byte is in no address; ``IPv6Address`` would take what follows the ``%`` for a zone.
    if "%" in address or not _is_ipv6(address):
        raise GoUrlError(f"invalid host: {_quoted(address)} is no IPv6 address")


def _is_ipv6(address: str) -> bool:
    try:
        IPv6Address(address)
    except AddressValueError:
        return False
    return True


def _check_zone(zone: str) -> None:
    if not zone:
        raise GoUrlError("invalid host: zone must be a non-empty string")
    _check_characters(zone)
    for escape in _escapes(zone):
        if not _ZONE_ESCAPED.fullmatch(chr(int(escape[1:], 16))):
            raise GoUrlError(f"invalid URL escape {_quoted(escape)}")


def _check_port(port: str) -> None:
    if not _PORT.fullmatch(port):
        raise GoUrlError(f"invalid port {_quoted(port)} after host")


def _check_host_name(name: str) -> None:
    _check_characters(name)
    for escape in _escapes(name):
        if int(escape[1:], 16) <= _ASCII_MAX and escape != "%25":
            raise GoUrlError(f"invalid URL escape {_quoted(escape)}")


def _check_characters(name: str) -> None:
    wrong = _NOT_IN_HOST.search(name)
    if wrong:
        raise GoUrlError(f"invalid character {_quoted(wrong[0])} in host name")


def _check_escapes(text: str) -> None:
    _escapes(text)


def _escapes(text: str) -> list[str]:
    """The percent escapes of a text, such as ``%2F``. Raises :class:`GoUrlError` for a ``%`` that begins none."""
    found: list[str] = []
    at = text.find("%")
    while at >= 0:
        escape = text[at : at + 3]
        if not _ESCAPE.fullmatch(escape):
            raise GoUrlError(f"invalid URL escape {_quoted(escape)}")
        found.append(escape)
        at = text.find("%", at + 3)
    return found


def _quoted(text: str) -> str:
    return f'"{text}"'
