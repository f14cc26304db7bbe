"""These tests make hosts of their own, for which they need root and tools of the system: ``make test-host``."""

from __future__ import annotations

import os
import shutil

import pytest

WANTED = "QUOTA_SIDECAR_HOST_TESTS"
TOOLS = ("ip", "nft", "iptables", "ip6tables", "curl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    why = ""
    if os.environ.get(WANTED) != "1":
        why = "needs root and network namespaces: make test-host"
    elif os.geteuid() != 0:
        raise pytest.UsageError("make test-host has to run as root: it makes network namespaces")
    elif lacking:
        raise pytest.UsageError(
            f"make test-host needs {', '.join(lacking)}: apt-get install iproute2 nftables iptables curl"
        )
    if why:
        for item in items:
            if "tests/host/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=why))
