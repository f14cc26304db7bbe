"""Where Valkey is: the URL in ``valkey:``, read into one of four kinds of topology.

======================================== =================================================================
``embedded:///directory``                a server of its own, started and kept in that directory
``valkey://host:6379/0``                 one server; ``valkeys://`` with TLS
``valkey+unix:///path.sock?db=0``        one server on a Unix socket
``valkey+sentinel://h1,h2:26379/name/0`` whatever the Sentinels say is the primary of ``name``
``valkey+cluster://h1:6379,h2:6379``     a Cluster, found through any of its nodes
======================================== =================================================================

``user:password@`` may stand before the hosts, percent-encoded (RFC 3986 section 2.1). ``valkeys+sentinel`` and
``valkeys+cluster`` use TLS. ``redis``, ``rediss`` and ``unix`` are accepted for ``valkey``, ``valkeys`` and
``valkey+unix``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

LENGTH_MAX: Final = 4096
HOSTS_MAX: Final = 64
DATABASE_MAX: Final = 16_383

#: sockaddr_un.sun_path has 108 bytes on Linux and 104 on macOS, with the NUL at the end.
UNIX_PATH_BYTES_MAX: Final = 103

EMBEDDED_SOCKET: Final = "valkey.sock"

_URL = re.compile(r"(?P<scheme>[a-z]+(?:\+[a-z]+)?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._-]+)?)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,128}")

_SCHEMES: Final[dict[str, tuple[str, bool]]] = {
    "embedded": ("embedded", False),
    "unix": ("unix", False),
    **{f"{name}{plus}": (kind, False) for name in ("valkey", "redis") for plus, kind in (
        ("", "standalone"), ("+unix", "unix"), ("+sentinel", "sentinel"), ("+cluster", "cluster"))},
    **{f"{name}{plus}": (kind, True) for name in ("valkeys", "rediss") for plus, kind in (
        ("", "standalone"), ("+sentinel", "sentinel"), ("+cluster", "cluster"))},
}  # fmt: skip


class ValkeyUrlError(ValueError):
    """A URL that names no Valkey. The message never holds any part that may be a password."""


@dataclass(frozen=True, slots=True)
class Address:
    """Host and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards Valkey. ``verify`` off accepts any certificate; ``ca_file`` None takes the system's authorities."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Credentials:
    """Name and password for AUTH; no name means the default user."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{quote(self.username, safe='')}@" if self.username else ""


NO_CREDENTIALS: Final = Credentials()


@dataclass(frozen=True, slots=True)
class Embedded:
    """A server that this program starts, with its data and its socket in ``directory``."""

    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / EMBEDDED_SOCKET

    def __str__(self) -> str:
        return f"embedded://{quote(str(self.directory))}"


@dataclass(frozen=True, slots=True)
class Standalone:
    """One server, by address or by the path of its Unix socket."""

    address: Address | Path
    credentials: Credentials = NO_CREDENTIALS
    db: int = 0
    tls: Tls | None = None

    def __str__(self) -> str:
        if isinstance(self.address, Path):
            return f"valkey+unix://{self.credentials}{quote(str(self.address))}?db={self.db}"
        return f"valkey{'s' if self.tls else ''}://{self.credentials}{self.address}/{self.db}"


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A primary that Sentinels elect. ``sentinel_credentials`` are for them, ``credentials`` for the servers."""

    sentinels: tuple[Address, ...]
    service: str
    credentials: Credentials = NO_CREDENTIALS
    sentinel_credentials: Credentials = NO_CREDENTIALS
    db: int = 0
    tls: Tls | None = None

    def __str__(self) -> str:
        hosts = ",".join(map(str, self.sentinels))
        return f"valkey{'s' if self.tls else ''}+sentinel://{self.credentials}{hosts}/{self.service}/{self.db}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Valkey Cluster, of which ``nodes`` are asked first."""

    nodes: tuple[Address, ...]
    credentials: Credentials = NO_CREDENTIALS
    tls: Tls | None = None

    def __str__(self) -> str:
        return f"valkey{'s' if self.tls else ''}+cluster://{self.credentials}{','.join(map(str, self.nodes))}"


Topology = Embedded | Standalone | Sentinel | Cluster


def parse_valkey_url(url: str) -> Topology:
    """Read a URL of the forms above.

    Raises:
        ValkeyUrlError: it has none of them; the message says which part is wrong.
    """
    if len(url) > LENGTH_MAX:
        raise ValkeyUrlError(f"is longer than {LENGTH_MAX} characters")
    match = _URL.fullmatch(url)
    if match is None:
        raise ValkeyUrlError(
            "is not a URL like valkey://host:6379/0; / ? # and @ within a password are written %2F %3F %23 %40"
        )
    scheme, path = match["scheme"], unquote(match["path"])
    if scheme not in _SCHEMES:
        raise ValkeyUrlError(f"has the unknown scheme {scheme}; known are {', '.join(sorted(_SCHEMES))}")
    kind, secure = _SCHEMES[scheme]
    login, _, hosts = match["authority"].rpartition("@")
    credentials, tls = _credentials(login), Tls() if secure else None
    database = _query_database(match["query"])
    match kind:
        case "embedded":
            if hosts or login or database is not None:
                raise ValkeyUrlError(
                    "embedded:// takes an absolute path alone, with three slashes: embedded:///var/lib/quota"
                )
            return Embedded(_absolute(path, reserve=len(EMBEDDED_SOCKET) + 1))
        case "unix":
            if hosts:
                raise ValkeyUrlError(
                    f"{scheme}:// takes an absolute path, with three slashes: {scheme}:///run/valkey.sock"
                )
            return Standalone(_absolute(path), credentials, database or 0)
        case "standalone":
            addresses = _addresses(hosts, 6379)
            if len(addresses) > 1:
                raise ValkeyUrlError(f"{scheme}:// takes one host; several are for +sentinel and +cluster")
            return Standalone(addresses[0], credentials, _database(path, database), tls)
        case "sentinel":
            service, _, rest = path.removeprefix("/").partition("/")
            if not _SERVICE.fullmatch(service):
                raise ValkeyUrlError(f"needs the name of the primary after the hosts: {scheme}://host:26379/mymaster")
            return Sentinel(_addresses(hosts, 26379), service, credentials, db=_database(rest, database), tls=tls)
        case _:
            if _database(path, database) != 0:
                raise ValkeyUrlError("names a database; a Cluster has only number 0")
            return Cluster(_addresses(hosts, 6379), credentials, tls)


def _credentials(login: str) -> Credentials:
    if not login:
        return NO_CREDENTIALS
    username, colon, password = login.partition(":")
    if "@" in login:
        raise ValkeyUrlError("has an @ within the user or password; write it %40")
    return Credentials(unquote(username) or None, unquote(password) if colon and password else None)


def _addresses(hosts: str, default_port: int) -> tuple[Address, ...]:
    if not hosts:
        raise ValkeyUrlError("names no host")
    names = hosts.split(",")
    if len(names) > HOSTS_MAX:
        raise ValkeyUrlError(f"names {len(names)} hosts; at most {HOSTS_MAX} are read")
    found = []
    for number, name in enumerate(names, start=1):
        match = _HOST.fullmatch(name)
        # The text is not repeated: with a stray slash or @ it may be part of a password.
        if match is None:
            raise ValkeyUrlError(f"host number {number} is not of the form host:port or [IPv6]:port")
        port = int(match["port"] or default_port)
        if not 1 <= port <= 65_535:
            raise ValkeyUrlError(f"host number {number} has the port {port}, which is not between 1 and 65535")
        found.append(Address(unquote(match["v6"] or match["name"]), port))
    return tuple(found)


def _query_database(query: str | None) -> int | None:
    if not query:
        return None
    name, _, value = query.partition("=")
    if name != "db" or not value.isdecimal():
        raise ValkeyUrlError("has a query other than ?db=NUMBER")
    return _number(value)


def _database(path: str, from_query: int | None) -> int:
    text = path.strip("/")
    if not text:
        return from_query or 0
    if not text.isdecimal() or from_query is not None:
        raise ValkeyUrlError("ends in something that is not one number of a database")
    return _number(text)


def _number(text: str) -> int:
    if len(text) > 5 or int(text) > DATABASE_MAX:
        raise ValkeyUrlError(f"names a database above {DATABASE_MAX}")
    return int(text)


def _absolute(path: str, reserve: int = 0) -> Path:
    if not path.startswith("/") or path.strip("/") == "" or "\0" in path:
        raise ValkeyUrlError("needs an absolute path")
    if len(path.encode()) + reserve > UNIX_PATH_BYTES_MAX:
        raise ValkeyUrlError(f"has too long a path: the socket's would be longer than {UNIX_PATH_BYTES_MAX} bytes")
    return Path(path)
