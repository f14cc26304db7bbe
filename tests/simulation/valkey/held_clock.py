"""A real Valkey server whose wall clock a test holds: it stands until it is set.

A small library in C, compiled once per run, answers the server's questions for the time (``held_clock.c``). Nothing of
the server is changed, so what it does with a time is what it does in production.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.valkey_process import ValkeyProcess

SOURCE = Path(__file__).with_name("held_clock.c")


def compiler() -> str | None:
    """The C compiler, which the compiled request path needs too; None if there is none."""
    return shutil.which(os.environ.get("CC", "cc"))


class HeldClock:
    """Microseconds since 1970 in a file that the server maps."""

    def __init__(self, path: Path, now_us: int) -> None:
        path.write_bytes(struct.pack("<q", now_us))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    def set(self, now_us: int) -> None:
        self._page[:8] = struct.pack("<q", now_us)


@contextmanager
def held_valkey(directory: Path, now_us: int, **settings: str) -> Iterator[tuple[ValkeyProcess, HeldClock]]:
    """A server under such a clock. ``settings``: of valkey.conf, with underscores for hyphens."""
    library, clock_file = directory / "held_clock.so", directory / "clock"
    cc = compiler()
    assert cc is not None, "there is no C compiler"
    subprocess.run([cc, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    clock = HeldClock(clock_file, now_us)
    server = ValkeyProcess(directory / "data", {name.replace("_", "-"): value for name, value in settings.items()})
    before = {name: os.environ.get(name) for name in ("LD_PRELOAD", "HELD_CLOCK_FILE")}
    os.environ |= {"LD_PRELOAD": str(library), "HELD_CLOCK_FILE": str(clock_file)}
    try:
        server.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield server, clock
    finally:
        server.stop()
