"""What a request to Lago does not do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.settings import LagoSettings
from sidecar.sandbox.lago.lago_server import Lago
from sidecar.sandbox.server import Server


class _Finder:
    """Notes which modules are looked for on the path."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        self.names.append(name)
        return None


async def test_a_request_looks_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpcore imports sniffio at every request. Where it is not installed, that would search the whole path."""
    lago = Lago()
    async with Server(lago.app()) as server:
        settings = LagoSettings.model_validate({"url": server.url, "api_key": lago.config.api_key})
        async with LagoClient(settings) as client:
            await client.customers()
            finder: Any = _Finder()
            monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
            await client.customers()
    assert finder.names == []
