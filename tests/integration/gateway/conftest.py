"""Tests of the proxy run on both event loops: they differ in what a transport allows when it closes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
import redis
import uvloop

from tests.integration.gateway.rig import running

BYTES_ONLY = frozenset({"test_transparency", "test_refusals", "test_other_clients", "test_routing"})


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Where only bytes are looked at, the loop of production is enough."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem not in BYTES_ONLY:
        loops["asyncio"] = asyncio.SelectorEventLoop
    return loops


@pytest.fixture
def gateway(valkey: redis.Redis) -> Any:
    """``async with gateway(script, …) as rig``: see :func:`running`."""
    return functools.partial(running, valkey)
