"""Reads Lago's API key and the CAs to trust, from the settings or from files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoSetupError
from sidecar.billing.settings import LagoSettings
from sidecar.metering.settings import check_token

log = get_logger("sidecar.billing")

KEY_BYTES_MAX: Final = 16_384


class Access:
    """The API key. Raises ``LagoSetupError`` when it is made and the settings hold none that can be used."""

    def __init__(self, settings: LagoSettings) -> None:
        self._settings = settings
        self.key = self._read()

    def __repr__(self) -> str:
        return "Access()"

    def renewed(self, refused: str) -> bool:
        """Whether there is another key than the one that Lago has just refused: the file is read again.

        A file that cannot be read leaves the key as it is.
        """
        if self.key == refused and self._settings.api_key_file is not None:
            try:
                self.key = self._read()
            except LagoSetupError as error:
                log.warning("cannot read lago.api_key_file, the previous key stays in use", reason=str(error))
        return self.key != refused

    def _read(self) -> str:
        if self._settings.api_key is not None:
            return self._settings.api_key.get_secret_value()
        path = self._settings.api_key_file
        if path is None:
            raise LagoSetupError("lago.url needs lago.api_key or lago.api_key_file")
        try:
            with path.open("rb") as file:
                raw = file.read(KEY_BYTES_MAX + 1)
        except OSError as error:
            raise LagoSetupError(f"lago.api_key_file: {path}: {error.strerror}") from None
        except ValueError:  # a path with a NUL
            raise LagoSetupError("lago.api_key_file: no file can have this name") from None
        if len(raw) > KEY_BYTES_MAX:
            raise LagoSetupError(f"lago.api_key_file: {path} is larger than {KEY_BYTES_MAX} bytes")
        key = raw.decode("latin-1").strip()
        try:
            check_token(key)
        except ValueError as error:
            raise LagoSetupError(f"lago.api_key_file: {path}: {error}") from None
        return key


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The CAs of ``ca_file``, or of the system. Raises ``LagoSetupError``."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise LagoSetupError(f"lago.ca_file: {ca_file} holds no certificate in PEM") from None
    except OSError as error:
        raise LagoSetupError(f"lago.ca_file: {ca_file}: {error.strerror}") from None
    except ValueError:
        raise LagoSetupError("lago.ca_file: no file can have this name") from None
