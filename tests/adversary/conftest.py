"""A gateway for hostile and for honest callers, on the loop of production."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
import redis
import uvloop

from tests.integration.gateway.rig import running

BOTH_LOOPS = frozenset({"test_table"})
"""The loops differ in what a transport allows when it closes, so who leaves is tried on both."""


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in BOTH_LOOPS:
        loops["asyncio"] = asyncio.SelectorEventLoop
    return loops


@pytest.fixture
def gateway(valkey: redis.Redis) -> Any:
    """``async with gateway(script, …) as rig``: see :func:`running`."""
    return functools.partial(running, valkey)
