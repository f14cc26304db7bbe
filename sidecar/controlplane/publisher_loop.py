"""The publisher's loop, alone or beside the control work."""

from __future__ import annotations

import asyncio

from sidecar.basics.errors import SetupError
from sidecar.controlplane.control_work import ControlWork
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.publisher.publisher import Publisher


async def run_loops(
    publisher: Publisher,
    control_work: ControlWork | None,
    stop: asyncio.Event,
    compaction: HourCompaction | None = None,
) -> None:
    """The publisher, and the control work if there is any, until ``stop``. Raises as :func:`run_publisher`.

    ``compaction``: what takes care of the ledger's hours where no control work does.
    """
    if control_work is None:
        compacting = asyncio.create_task(compaction.run(stop)) if compaction is not None else None
        try:
            await run_publisher(publisher, stop)
        finally:
            if compacting is not None:
                compacting.cancel()
                await asyncio.gather(compacting, return_exceptions=True)
        return
    ended = asyncio.Event()
    keeping = asyncio.create_task(control_work.run(ended))
    told = asyncio.create_task(stop.wait())
    publishing = asyncio.create_task(run_publisher(publisher, ended))
    try:
        # Whichever ends on its own has failed, and the process with it: another control plane takes over.
        await asyncio.wait({keeping, publishing, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.set()
        told.cancel()
        results = await asyncio.gather(keeping, publishing, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def run_publisher(publisher: Publisher, stop: asyncio.Event) -> None:
    """Runs the publisher until ``stop``. Raises `SetupError`: a file that its settings name cannot be used."""
    publishing = asyncio.create_task(publisher.run())
    told = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({publishing, told}, return_when=asyncio.FIRST_COMPLETED)
        publisher.stop()
        await publishing
    except MeteringError as error:
        raise SetupError(f"metering: {error}") from None
    finally:
        told.cancel()
