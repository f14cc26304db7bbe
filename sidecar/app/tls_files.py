"""Certificates and keys from files, with errors that name the file and its setting."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of

_NO_PEM: Final = "holds no certificate in PEM"


def client_context(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """Trusts the authorities of ``ca_file``, or the system's. Raises `SetupError`."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(ca_file, setting, error) from None


def load_authorities(context: ssl.SSLContext, file: Path, setting: str) -> None:
    """Trust the authorities of ``file``. Raises `SetupError`."""
    try:
        context.load_verify_locations(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(file, setting, error) from None


def _unusable(file: Path | None, setting: str, error: OSError) -> SetupError:
    reason = _NO_PEM if isinstance(error, ssl.SSLError) else f"cannot be read: {reason_of(error)}"
    return SetupError(f"{setting}: {file} {reason}")


def load_pair(
    context: ssl.SSLContext, section: str, certificate_file: Path, key_file: Path, password: str | None = None
) -> None:
    """Present the certificate of these files. ``section`` is where the settings are, as in ``listen.tls``.

    Raises:
        SetupError: a file cannot be read, holds no PEM, or they do not belong together.
    """
    asked = False

    def passphrase() -> str:  # without one OpenSSL would ask at the terminal
        nonlocal asked
        asked = True
        return password or ""

    for name, file in (("certificate_file", certificate_file), ("key_file", key_file)):
        try:
            file.read_bytes()
        except OSError as error:
            raise _unusable(file, f"{section}.{name}", error) from None
    try:
        context.load_cert_chain(certificate_file, key_file, passphrase)
    except ssl.SSLError as error:
        raise SetupError(_fault(error, section, certificate_file, key_file, asked and password)) from None


def _fault(
    error: ssl.SSLError, section: str, certificate_file: Path, key_file: Path, password: str | bool | None
) -> str:
    """``password`` is what the key was opened with, False if it needs none."""
    if not _is_certificate(certificate_file):
        return f"{section}.certificate_file: {certificate_file} {_NO_PEM}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{section}.key_file: the key in {key_file} does not belong to the certificate in {certificate_file}"
    if password is False:
        return f"{section}.key_file: {key_file} holds no private key in PEM"
    if section == "listen.tls":
        needed = "is wrong" if password else "is needed (or key_password_file)"
        return f"{section}.key_password: {needed}: {key_file} is encrypted"
    return f"{section}.key_file: {key_file} is encrypted; give the key without a password"


def _is_certificate(file: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError:
        return False
    return True
