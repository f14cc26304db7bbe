"""The machine that a measurement is made on, in words."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def processor(cpuinfo: str, architecture: str) -> str:
    """The model by ``/proc/cpuinfo``, which some architectures do not name, and the architecture."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return f"{' '.join(value.split())} ({architecture})"
    return architecture


def describe() -> str:
    """Processor, cores, operating system and kernel."""
    cpuinfo = system = ""
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text()
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    cores = os.cpu_count() or 1
    words = [
        processor(cpuinfo, platform.machine()),
        f"{cores} core{'s' if cores > 1 else ''}",
        system,
        f"{platform.system()} {platform.release()}",
    ]
    return ", ".join(word for word in words if word)


def python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"
