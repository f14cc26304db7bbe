"""The message when an address cannot be listened on: the address, the reason, the setting to change."""

from __future__ import annotations

import errno

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of


class CannotListen(SetupError):
    """``setting`` names the port: a key path, as in ``listeners[0].port``, or a flag of a command."""

    def __init__(self, error: OSError, host: str, port: int, setting: str) -> None:
        super().__init__(_message(error, host, port, setting))


def _message(error: OSError, host: str, port: int, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        remedy = f"stop the other process or set {setting} to a free port"
        return f"{setting}: port {port} is in use on {host}; {remedy}"
    if error.errno == errno.EACCES:
        return f"{setting}: this user may not listen on port {port}; set {setting} to a port above 1023"
    return f"{setting}: cannot listen on {host}:{port}: {reason_of(error)}"
