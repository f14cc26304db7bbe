"""Access to OpenMeter: its URL, the token, TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp

from sidecar.basics.logger import get_logger
from sidecar.metering.settings import MeteringSettings, check_token

log = get_logger("sidecar.metering")

TOKEN_BYTES_MAX = 16_384


class MeteringError(Exception):
    """Metering cannot start as configured. The message names the setting."""


class Access:
    """Reads the token when it is made.

    Raises:
        MeteringError: ``url`` is not set, or the token's file cannot be read or is not what it should be.
    """

    def __init__(self, settings: MeteringSettings) -> None:
        if settings.url is None:
            raise MeteringError("metering.url is not set")
        self.url = settings.url
        self._settings = settings
        self._token = self._read_token()

    def __repr__(self) -> str:
        return f"Access({self.url}, {'no token' if self._token is None else 'token'})"

    @property
    def headers(self) -> dict[str, str]:
        """Fields that every request has."""
        fields = {"Accept-Encoding": "identity"}
        if self._token is not None:
            fields["Authorization"] = f"Bearer {self._token}"
        return fields

    @property
    def refusal(self) -> str:
        """What a 401 or 403 means."""
        return "wants a token" if self._token is None else "refuses the token"

    @property
    def remedy(self) -> str:
        """What to do about a 401 or 403."""
        if self._token is None:
            return "set metering.token_file"
        return f"check metering.{'token' if self._settings.token is not None else 'token_file'}"

    def session(self, timeout_ms: int) -> aiohttp.ClientSession:
        """Connections, ``requests_in_flight_max`` of them at most; the caller closes it.

        Raises:
            MeteringError: ``ca_file`` cannot be used.
        """
        settings = self._settings
        tls = _tls(settings.ca_file) if settings.ca_file else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.requests_in_flight_max, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=timeout_ms / 1000),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def reload_token(self) -> None:
        """Reads the token's file again, since it may have been replaced. Keeps the old token if it cannot be read."""
        try:
            self._token = self._read_token()
        except MeteringError as error:
            log.warning("cannot read metering.token_file, the previous token stays in use", reason=str(error))

    def _read_token(self) -> str | None:
        if self._settings.token is not None:
            return self._settings.token.get_secret_value()
        path = self._settings.token_file
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                raw = file.read(TOKEN_BYTES_MAX + 1)
        except OSError as error:
            raise MeteringError(f"metering.token_file: {path}: {error.strerror}") from None
        if len(raw) > TOKEN_BYTES_MAX:
            raise MeteringError(f"metering.token_file: {path} is larger than {TOKEN_BYTES_MAX} bytes")
        token = raw.decode("latin-1").strip()
        try:
            check_token(token)
        except ValueError as error:
            raise MeteringError(f"metering.token_file: {path}: {error}") from None
        return token


def _tls(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise MeteringError(f"metering.ca_file: {ca_file} holds no certificate in PEM") from None
    except OSError as error:
        raise MeteringError(f"metering.ca_file: {ca_file}: {error.strerror}") from None
