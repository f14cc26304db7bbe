"""Every test of the proxy runs on both event loops: they differ in what a transport allows when it closes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
import redis
import uvloop

from tests.integration.proxy.rig import running


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def gateway(valkey: redis.Redis) -> Any:
    """``async with gateway(script, …) as rig``: see :func:`running`."""
    return functools.partial(running, valkey)
