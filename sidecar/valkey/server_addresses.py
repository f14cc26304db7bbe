"""Addresses with what it takes to enter: credentials, database, TLS."""

from __future__ import annotations

from pathlib import Path

from sidecar.valkey.client_options import tls_context
from sidecar.valkey.resp import ServerAddress
from sidecar.valkey.url import Address, Credentials, Tls


class ServerAddresses:
    """TLS files are read once; raises `TopologyError` if they cannot be used."""

    def __init__(self, tls: Tls | None, credentials: Credentials, db: int = 0) -> None:
        self._context = tls_context(tls) if tls is not None else None
        self._credentials = credentials
        self._db = db

    def of(self, where: Address | Path) -> ServerAddress:
        username, password = self._credentials.username, self._credentials.password
        if isinstance(where, Path):
            return ServerAddress(path=str(where), username=username, password=password, db=self._db)
        return ServerAddress(
            host=where.host,
            port=where.port,
            username=username,
            password=password,
            db=self._db,
            tls=self._context,
            server_hostname=where.host if self._context is not None else None,
        )
