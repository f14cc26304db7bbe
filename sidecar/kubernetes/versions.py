"""What depends on Kubernetes' version."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from sidecar.kubernetes.injection_options import InjectionSettings

Version = tuple[int, int]
"""Major and minor."""

NATIVE_SINCE: Final[Version] = (1, 29)
"""Init containers with ``restartPolicy: Always`` are on by default."""
NATIVE_PORTS_SINCE: Final[Version] = (1, 33)
"""Services find their named ports (kubernetes pull request 128850); before, such a Service has no endpoint."""
_VERSION: Final = re.compile(r"v?([0-9]{1,3})\.([0-9]{1,3})(?:[.+-].*)?")


def version_of(text: str) -> Version:
    """Of ``1.33``, ``v1.33.1+k3s1`` and the like. Raises `ValueError`."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a version like 1.33")
    return int(found[1]), int(found[2])


def settings_for(settings: InjectionSettings, version: Version) -> InjectionSettings:
    """The settings for a cluster whose oldest node has this version."""
    return replace(settings, native=version >= NATIVE_SINCE, native_ports=version >= NATIVE_PORTS_SINCE)
