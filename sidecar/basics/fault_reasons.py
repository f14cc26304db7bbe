"""Why something failed, in words for whoever runs the program: without error numbers and without the texts that
libraries print of their objects.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from typing import Final

_WORDS: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "the other side closed the connection",
    errno.EPIPE: "the other side closed the connection",
    errno.EHOSTUNREACH: "the host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.ETIMEDOUT: "no answer in time",
    errno.EADDRINUSE: "the port is in use",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.ENOENT: "no such file or directory",
}
_NUMBER: Final = re.compile(r"\[Errno (-?\d+)\]|\bError (\d+) (?:connecting to|while)")
_ADDRESS: Final = re.compile(r"\bconnecting to (\S+?)\.(?: |$)")
_OBJECT: Final = re.compile(r"\s*<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*>")
"""An object as Python prints one, with what is nested in it. redis-py names clients so."""
_CONNECT_FAILED: Final = re.compile(r"\[?Connect call failed \(.*\)\]?")


def reason_of(error: BaseException) -> str:
    """The reason in a few words, with the address where the error has one. Never empty."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)  # aiohttp's wrap another
    if isinstance(inner, Exception) and inner is not error:
        host, port = getattr(error, "host", None), getattr(error, "port", None)
        reason = reason_of(inner)
        return f"{host}:{port}: {reason}" if host and port and f"{host}:{port}" not in reason else reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error)
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:
        reason = words_of(error.errno)
        return f"{error.filename}: {reason}" if error.filename else reason
    return _cleaned(str(error)) or _name(error)


def words_of(number: int) -> str:
    """What an error number means."""
    return _WORDS.get(number) or os.strerror(number)


def _tls_reason(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "the other side does not speak TLS"
    return f"TLS failed: {reason.replace('_', ' ').lower()}" if reason else "TLS failed"


def _cleaned(text: str) -> str:
    """A library's message without numbers, tuples and objects; with the address first."""
    found = _NUMBER.search(text)
    address = _ADDRESS.search(text)
    if found and (address or found[1]):
        number = int(found[1] or found[2])
        reason = "the host name is not known" if number < 0 else words_of(number)
        return f"{address[1]}: {reason}" if address else reason
    if _CONNECT_FAILED.search(text):
        return "connection refused"
    return " ".join(_OBJECT.sub("", text).split()).rstrip(" .:")


def _name(error: BaseException) -> str:
    """The class as words: a message that is empty says nothing."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(error).__name__).lower()
