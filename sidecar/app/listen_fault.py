"""The message when an address cannot be listened on: the address, the reason, the setting to change."""

from __future__ import annotations

import errno

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of


class CannotListen(SetupError):
    """``setting`` is the key path of the port, as in ``listeners.0.port``."""

    def __init__(self, error: OSError, host: str, port: int, setting: str) -> None:
        self.setting = setting
        self._error, self._host, self._port = error, host, port
        super().__init__(self.message_for(setting))

    def message_for(self, name: str) -> str:
        """The message for somebody who sets the port as ``name``: a key, or a flag of a command."""
        if self._error.errno == errno.EADDRINUSE:
            remedy = f"stop the other process or set {name} to a free port"
            return f"{name}: port {self._port} is in use on {self._host}; {remedy}"
        if self._error.errno == errno.EACCES:
            return f"{name}: this user may not listen on port {self._port}; set {name} to a port above 1023"
        return f"{name}: cannot listen on {self._host}:{self._port}: {reason_of(self._error)}"
