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

_CLOSED: Final = "the other side closed the connection"
_WORDS: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: _CLOSED,
    errno.EPIPE: _CLOSED,
    errno.EHOSTUNREACH: "the host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.ETIMEDOUT: "no answer in time",
    errno.EADDRINUSE: "the port is in use",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.ENOENT: "no such file or directory",
}
_NUMBER: Final = re.compile(r"\[Errno (-?\d+)\]|\bError (\d+) (?:connecting to|while)")
_ADDRESS: Final = re.compile(r"\bconnecting to (\S+?)\.(?: |$)")
_REDIS_TIMEOUT: Final = re.compile(r"Timeout (?:connecting to|reading from|writing to) (\S+)$")
_REDIS_LOST: Final = re.compile(r"Error while reading from (\S+?) ?: \(")
_REDIS_CLOSED: Final = "Connection closed by server"
_REDIS_CLUSTER: Final = "Redis Cluster cannot be connected"
_NO_PRIMARY: Final = re.compile(r"No master found for ('.*?')")
_HTTP_CLIENTS: Final = ("httpx", "httpcore")
_CONNECT_FAILED: Final = re.compile(r"\[?Connect call failed \(.*\)\]?")


def reason_of(error: BaseException) -> str:
    """The reason in a few words, with the address where the error has one. Never empty."""
    inner = _wrapped(error)
    if inner is not None:
        host, port = getattr(error, "host", None), getattr(error, "port", None)
        reason = reason_of(inner)
        return f"{host}:{port}: {reason}" if host and port and f"{host}:{port}" not in reason else reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error)
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is missing"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:
        return words_of(error.errno)
    return _cleaned(str(error)) or _name(error)


def _wrapped(error: BaseException) -> BaseException | None:
    """The error that this one was made of, where that says more."""
    inner: BaseException | None = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
    if inner is None and type(error).__module__.partition(".")[0] in _HTTP_CLIENTS:
        inner = error.__cause__ or error.__context__
    if inner is None and type(error) is OSError and not error.errno:  # anyio's, of all addresses of a host
        inner = error.__cause__
    if isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner if isinstance(inner, Exception) and inner is not error else None


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
    if found:
        number = int(found[1] or found[2])
        reason = "the host name is not known" if number < 0 else words_of(number)
        return f"{address[1]}: {reason}" if address else reason
    if _CONNECT_FAILED.search(text):
        return "connection refused"
    if text.startswith(_REDIS_CLOSED):
        return _CLOSED
    if text.startswith(_REDIS_CLUSTER):
        return "no node of the Cluster can be reached"
    for pattern, reason in ((_REDIS_TIMEOUT, "no answer in time"), (_REDIS_LOST, _CLOSED)):
        found = pattern.match(text)
        if found:
            return reason if found[1] in ("server", "socket") else f"{found[1]}: {reason}"
    no_primary = _NO_PRIMARY.match(text)
    if no_primary:
        return f"no Sentinel knows a primary of {no_primary[1]}"
    return " ".join(_without_objects(text).split()).rstrip(" .:")


def _without_objects(text: str) -> str:
    """Without what Python prints of an object, ``<module.Class(…)>``, and what is nested in it."""
    kept, depth = [], 0
    for index, character in enumerate(text):
        if character == "<" and (depth or text[index + 1 : index + 2].isalpha()):
            depth += 1
        elif character == ">" and depth:
            depth -= 1
        elif not depth:
            kept.append(character)
    return "".join(kept)


def _name(error: BaseException) -> str:
    """The class as words: a message that is empty says nothing."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(error).__name__).lower()
