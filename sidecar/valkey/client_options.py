"""What redis-py's clients are made with, and TLS for any connection to Valkey."""

from __future__ import annotations

import ssl
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from sidecar.valkey.url import Credentials, Tls


class TopologyError(Exception):
    """No primary can be found or talked to as configured; the message names the place and holds no secret."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """A context for connections of one's own.

    Raises:
        TopologyError: a file cannot be read, or holds no certificate or no matching key; names the setting.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except (OSError, ValueError) as error:
        raise TopologyError(f"valkey_tls.ca_file {tls.ca_file}: {_reason(error)}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate_file is not None:
        try:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
        except (OSError, ValueError) as error:
            files = f"{tls.certificate_file} with key_file {tls.key_file}"
            raise TopologyError(f"valkey_tls.certificate_file {files}: {_reason(error)}") from None
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"is not usable PEM ({error.reason or 'unknown reason'})"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def client_options(timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    """Of every client. ``timeout_s`` is for one answer, ``connect_timeout_s`` for one connection."""
    return {
        # A pooled connection may have died unseen; more than that is for the caller, who knows how long he can wait.
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "decode_responses": False,
        # RESP2: answers have one shape with every version of redis-py and on every server.
        "protocol": 2,
    }


def login_options(credentials: Credentials) -> dict[str, Any]:
    return {"username": credentials.username, "password": credentials.password}


def tls_options(tls: Tls | None) -> dict[str, Any]:
    """Raises `TopologyError`: a file cannot be used."""
    if tls is None:
        return {}
    tls_context(tls)  # redis-py reads the files at the first connection; a bad one is to be known now, by its name
    return {
        "ssl": True,
        "ssl_ca_certs": str(tls.ca_file) if tls.ca_file else None,
        "ssl_certfile": str(tls.certificate_file) if tls.certificate_file else None,
        "ssl_keyfile": str(tls.key_file) if tls.key_file else None,
        "ssl_cert_reqs": "required" if tls.verify else "none",
        "ssl_check_hostname": tls.verify,
    }
