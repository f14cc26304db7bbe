"""Running a process: the data plane (``sidecar run``) or the control plane (``sidecar control``), until it is told
to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from sidecar import __version__
from sidecar.config.models import Config
from sidecar.control import assemble
from sidecar.control.accounts_view import AccountsView
from sidecar.control.admin import AdminServer
from sidecar.control.assemble import SetupError
from sidecar.control.dataplane import DataPlane, Health
from sidecar.control.metrics import DataPlaneCollector
from sidecar.control.store import Store, open_store
from sidecar.identity.types import KeyStore, KeyStoreUnavailable
from sidecar.ledger.api_keys import ApiKeys
from sidecar.ledger.reaper import keep_reaping
from sidecar.metering.metrics import PublisherCollector
from sidecar.metering.publisher import Publisher
from sidecar.metering.sender import MeteringError
from sidecar.metering.status import outbox_status

log = structlog.get_logger("sidecar")

Ready = Callable[[int, int], None]
"""Called with the proxy's and the admin's port once both listen; 0 where there is none."""


def key_store(store: Store) -> KeyStore:
    """API keys as identity asks for them."""
    return ApiKeys(store.client, store.keys, unavailable=KeyStoreUnavailable)


def _registry(plane: DataPlane | None, publisher: Publisher | None) -> CollectorRegistry:
    registry = CollectorRegistry()
    if plane is not None:
        registry.register(DataPlaneCollector(plane))
    if publisher is not None:
        registry.register(PublisherCollector(publisher.metrics))
    return registry


async def status_document(store: Store, plane: DataPlane | None) -> dict[str, Any]:
    """What ``/v1/status`` shows."""
    document: dict[str, Any] = {"version": __version__, "pid": os.getpid()}
    if plane is not None:
        health = plane.health()
        document["ready"] = health.ready
        if health.why:
            document["why"] = health.why
        document["instance"] = plane.ledger.instance
        document["upstream"] = str(plane.gateway.pool.target)
        document["connections"] = len(plane.gateway.connections)
        document["ledger"] = {"up": plane.ledger.is_up, "backlog_operations": plane.ledger.backlog}
    status = await outbox_status(store.client, store.keys)
    document["outbox"] = {
        "entries": status.entries,
        "events": status.events,
        "oldest_seconds": status.oldest_s,
        "dead_letters": status.dead_letters,
    }
    return document


@contextlib.asynccontextmanager
async def admin_server(
    config: Config,
    store: Store,
    plane: DataPlane | None,
    publisher: Publisher | None,
    socket_path: str | None = None,
) -> AsyncIterator[int]:
    """The admin side of one process; yields its port. Raises `SetupError`."""
    registry = _registry(plane, publisher)

    async def health() -> Health:
        return plane.health() if plane is not None else Health(True)

    async def metrics() -> bytes:
        return generate_latest(registry)

    async def status() -> Mapping[str, Any]:
        return await status_document(store, plane)

    server = AdminServer(
        config.admin,
        health=health,
        metrics=metrics,
        status=status,
        accounts=AccountsView(store.accounts),
        socket_path=socket_path,
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.close()


async def run_data_plane(
    config: Config, stop: asyncio.Event, ready: Ready, *, port: int | None = None, admin_socket: str | None = None
) -> bool:
    """Serves until ``stop``. False if something had to be cut off. Raises `SetupError`.

    ``port`` and ``admin_socket`` are a worker's: the port that it shares, and where its parent asks it.
    """
    async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
        plane = DataPlane(config, store.client, key_store(store))
        port = await plane.start(port=port, reuse_port=port is not None)
        try:
            async with admin_server(config, store, plane, None, admin_socket) as admin_port:
                ready(port, admin_port)
                log.info("serving", host=config.listen.host, port=port, admin_port=admin_port)
                await stop.wait()
                return await plane.stop()
        except BaseException:  # whatever it was, holds are settled before it is told
            await plane.stop()
            raise


async def run_control_plane(config: Config, stop: asyncio.Event, ready: Ready) -> bool:
    """Publishes and reaps until ``stop``. Raises `SetupError`."""
    if config.metering.url is None:
        raise SetupError("metering.url is not set: there is nowhere to publish usage events to")
    async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
        publisher = Publisher(store.client, store.keys, config.metering)
        async with admin_server(config, store, None, publisher) as admin_port:
            reaping = asyncio.create_task(keep_reaping(store.client, store.keys, config.ledger.instance_ttl_ms))
            ready(0, admin_port)
            log.info("publishing", to=config.metering.url, admin_port=admin_port)
            try:
                await publish_until(publisher, stop)
            finally:
                reaping.cancel()
                await asyncio.gather(reaping, return_exceptions=True)
    return True


async def publish_until(publisher: Publisher, stop: asyncio.Event) -> None:
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
