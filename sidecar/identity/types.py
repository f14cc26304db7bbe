"""What a resolver sees of a request, and what it may answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a client connection.

    ``address`` is the IP address in text ("" for a Unix socket); ``trusted`` says that it lies in a network
    from which identity headers are accepted; ``certificate`` is the client certificate in DER if TLS ended
    here and the peer's certificate was verified.
    """

    address: str
    trusted: bool
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """An account id (Lago's customer ``external_id``) and the resolver that identified it.

    ``organisation`` is the organisation identifier of the caller's certificate, "" where none was looked at. ``lines``
    are the field lines that tell the API all this, each with its CRLF; see `identified`.
    """

    account: str
    via: str
    organisation: str = field(default="", compare=False)
    lines: bytes = field(default=b"", compare=False, repr=False)


def identified(account: str, via: str, organisation: str = "") -> Identity:
    """An identity with what the API is told of it. A value that no field can carry is left out."""
    lines = b""
    for name, value in (("X-TPP-Id", account), ("X-TPP-Organisation-Id", organisation), ("X-TPP-Resolver", via)):
        if value and value.isascii() and value.isprintable():
            lines += f"{name}: {value}\r\n".encode()
    return Identity(account, via, organisation, lines)


@dataclass(frozen=True, slots=True)
class Unidentified:
    """A credential was shown and is no good. ``reason`` is fit for the caller's eyes: it holds no secret."""

    reason: str
    challenge: str = ""  # value for WWW-Authenticate (RFC 9110 section 11.6.1), if the scheme has one


Outcome = Identity | Unidentified

#: Lower-case field names to values, only of the fields that some resolver declared. A field that came more
#: than once has its values joined by b", " (RFC 9110 section 5.3), so a doubled credential matches nothing.
Fields = Mapping[bytes, bytes]


class IdentityUnavailable(Exception):
    """Whether the credential is good cannot be told now: what knows it is out of reach. Answered 503."""


class IdentitySetupError(Exception):
    """A resolver cannot start as it is configured; the message names the setting."""


class KeyStoreUnavailable(Exception):
    """The store of API keys is out of reach or answered with an error of its own."""


class KeyStore(Protocol):
    """Where API keys are kept, under their SHA-256."""

    async def account_of(self, sha256_hex: str) -> str | None:
        """Answer the account that the key belongs to, None if there is no such key.

        Raises ``KeyStoreUnavailable``.
        """
        ...


class Resolver(Protocol):
    """One way to tell who calls. Resolvers stand in a list; the first that answers not None decides."""

    name: str
    reads: frozenset[bytes]
    """Lower-case names of the header fields it looks at."""
    consumes: frozenset[bytes]
    """Those of ``reads`` that are not forwarded upstream."""
    spoofable: frozenset[bytes]
    """Fields that are never forwarded when they come from a peer that is not trusted."""
    challenge: str
    """What a caller who shows no credential at all is asked for: a challenge of RFC 9110 section 11.3."""
    asks_for: str
    """The same in words, for the refusal's text; "" if it is nothing that the caller could do about."""

    @property
    def refused_lookups(self) -> int:
        """Credentials that were not looked up because too many others were."""
        ...

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | asyncio.Future[Outcome] | None:
        """Answer who calls, as far as this resolver can tell.

        None: no credential of this kind here. A future: the answer needs I/O (first sight of a key, a new
        JWKS). The future belongs to the caller, who may cancel it; it raises ``IdentityUnavailable``.
        """
        ...

    async def start(self) -> None:
        """Raise ``IdentitySetupError`` if it cannot work as configured."""
        ...

    async def close(self) -> None: ...
