"""Requests leave no reference cycles behind, so that the garbage collector may come seldom (``control/serve.py``)."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

from tests.integration.gateway.api import echo, silent
from tests.integration.gateway.rig import get, post

OURS = ("sidecar.gateway", "sidecar.ledger", "sidecar.identity")


async def test_no_request_needs_the_collector(gateway: Any) -> None:
    async with gateway(echo) as rig:
        for _ in range(3):  # what is made once for all
            await rig.ask(get())
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)  # what only the collector could free is kept, to be looked at
        try:
            for _ in range(20):
                assert (await rig.ask(get())).status == 200
                assert (await rig.ask(post(b"a payment"))).status == 200
                assert (await rig.ask(get(key=b"X-API-Key: nobody\r\n"))).status == 401
            gc.collect()
            left = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith(OURS))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert not left


async def test_clients_that_leave_need_it_neither(gateway: Any) -> None:
    async with gateway(silent) as rig:
        await rig.idle()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                wire = await rig.connect()
                await wire.send(post(b"half a payment")[:-4])
                wire.reset()
            await rig.until(lambda: not rig.gateway.connections)
            gc.collect()
            left = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith(OURS))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert not left
