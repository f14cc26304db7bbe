"""Running a control plane (``sidecar control``) until it is told to stop: publisher, reaper, billing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.app import assemble
from sidecar.app.checkpoints import checkpoint_loop
from sidecar.app.configuration import Config
from sidecar.app.ledger_start import check_ledger, check_ledger_later
from sidecar.app.serve import Ready, admin_server
from sidecar.basics.errors import SetupError
from sidecar.basics.logger import get_logger
from sidecar.controlplane import metrics
from sidecar.controlplane.control_work import ControlWork, open_control_work
from sidecar.controlplane.memory_watch import MemoryWatch
from sidecar.controlplane.publisher_loop import run_loops
from sidecar.ledger.client.reaper import keep_reaping
from sidecar.ledger.store import open_store
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.metering.metrics import PublisherCollector
from sidecar.metering.publisher.publisher import Publisher

log = get_logger("sidecar")


def collectors_of(
    publisher: Publisher, control_work: ControlWork | None, memory: MemoryWatch | None = None
) -> Iterator[Collector]:
    """What a control plane counts."""
    yield PublisherCollector(publisher.metrics)
    if memory is not None:
        yield memory
    if control_work is not None:
        yield from metrics.collectors(control_work)


async def run_control_plane(config: Config, stop: asyncio.Event, ready: Ready) -> bool:
    """Publishes, reaps, and keeps the ledger and Lago's books together until ``stop``. Raises `SetupError`."""
    if config.metering.url is None:
        raise SetupError("metering.url is not set: a control plane needs it to deliver usage events")
    async with (
        open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store,
        open_control_work(config.lago, config.metering, store) as control_work,
    ):
        is_checked = await check_ledger(config, store.client)
        publisher = Publisher(store.client, store.keys, config.metering)
        memory = MemoryWatch(store.client, store.keys)
        checkpoints = checkpoint_loop(config, store)
        collectors = collectors_of(publisher, control_work, memory)
        async with admin_server(config, store, None, collectors=collectors, control_work=control_work) as ports:
            tasks = [
                asyncio.create_task(memory.run(stop)),
                asyncio.create_task(keep_reaping(store.client, store.keys, config.ledger.instance_ttl_ms)),
            ]
            if checkpoints is not None:
                tasks.append(asyncio.create_task(checkpoints.run(stop)))
            if not is_checked:
                tasks.append(asyncio.create_task(check_ledger_later(config, store.client)))
            ready(ports)
            log.info(
                "publishing", version=__version__, to=config.metering.url, lago=config.lago.url, admin_port=ports.admin
            )
            try:
                hours = config.lago.audit.hours
                compaction = HourCompaction(store.client, store.keys, hours, must_agree=False)
                await run_loops(publisher, control_work, stop, compaction)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    return True
