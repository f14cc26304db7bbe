"""These tests install the chart into a cluster of their own: ``make test-cluster``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.cluster.kit import Cluster, Installed, installed_into

WANTED = "QUOTA_SIDECAR_CLUSTER_TESTS"
IMAGE = "QUOTA_SIDECAR_CLUSTER_IMAGE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(WANTED) == "1":
        for what, there in ((f"{IMAGE}=IMAGE:TAG", os.environ.get(IMAGE)), ("kubectl", shutil.which("kubectl"))):
            if not there:
                raise pytest.UsageError(f"make test-cluster needs {what}")
        return
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="needs a Kubernetes cluster to itself: make test-cluster"))


@pytest.fixture(scope="session")
def installed() -> Iterator[Installed]:
    """The chart, the API's namespace, and what they need. All of it is removed at the end."""
    with installed_into(Cluster(), os.environ[IMAGE]) as everything:
        yield everything
