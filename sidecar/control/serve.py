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
from sidecar.control import assemble, billing_metrics
from sidecar.control.accounts_view import AccountsView
from sidecar.control.admin import AdminServer
from sidecar.control.assemble import SetupError
from sidecar.control.billing import Billing, open_billing
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


def _registry(plane: DataPlane | None, publisher: Publisher | None, billing: Billing | None) -> CollectorRegistry:
    registry = CollectorRegistry()
    if billing is not None:
        billing_metrics.register(registry, billing)
    if plane is not None:
        registry.register(DataPlaneCollector(plane))
    if publisher is not None:
        registry.register(PublisherCollector(publisher.metrics))
    return registry


async def status_document(store: Store, plane: DataPlane | None, billing: Billing | None = None) -> dict[str, Any]:
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
    if billing is not None:
        document["billing"] = billing_status(billing)
    return document


def billing_status(billing: Billing) -> dict[str, Any]:
    """Who leads, when everybody was looked at last, what is wrong."""
    metrics, lease = billing.metrics, billing.lease.state
    return {
        "lago": billing.settings.url,
        "leads": lease.held,
        "leader": lease.leader,
        "swept_at": metrics.swept_at_s or None,
        "doorbells_waiting": metrics.bells_waiting,
        "alerts": dict(metrics.alerts_by_kind()),
        "synced_at": billing.sync.metrics.finished_at_ms if billing.sync is not None else None,
        "sync_refused": dict(billing.sync.metrics.refused) if billing.sync is not None else {},
    }


@contextlib.asynccontextmanager
async def admin_server(
    config: Config,
    store: Store,
    plane: DataPlane | None,
    publisher: Publisher | None,
    socket_path: str | None = None,
    *,
    billing: Billing | None = None,
) -> AsyncIterator[int]:
    """The admin side of one process; yields its port. Raises `SetupError`."""
    registry = _registry(plane, publisher, billing)

    async def health() -> Health:
        return plane.health() if plane is not None else Health(True)

    async def metrics() -> bytes:
        return generate_latest(registry)

    async def status() -> Mapping[str, Any]:
        return await status_document(store, plane, billing)

    server = AdminServer(
        config.admin,
        health=health,
        metrics=metrics,
        status=status,
        accounts=AccountsView(store.accounts),
        webhooks=billing.handle_webhook if billing is not None else None,
        field_bytes_max=billing.receiver.field_bytes_max if billing is not None else 8190,
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
    """Publishes, reaps, and keeps the ledger and Lago's books together until ``stop``. Raises `SetupError`."""
    if config.metering.url is None:
        raise SetupError("metering.url is not set: there is nowhere to publish usage events to")
    async with (
        open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store,
        open_billing(config, store) as billing,
    ):
        publisher = Publisher(store.client, store.keys, config.metering)
        async with admin_server(config, store, None, publisher, billing=billing) as admin_port:
            reaping = asyncio.create_task(keep_reaping(store.client, store.keys, config.ledger.instance_ttl_ms))
            ready(0, admin_port)
            log.info("publishing", to=config.metering.url, lago=config.lago.url, admin_port=admin_port)
            try:
                await control_until(publisher, billing, stop)
            finally:
                reaping.cancel()
                await asyncio.gather(reaping, return_exceptions=True)
    return True


async def control_until(publisher: Publisher, billing: Billing | None, stop: asyncio.Event) -> None:
    """The publisher, and the billing side if there is one, until ``stop``. Raises as :func:`publish_until`."""
    if billing is None:
        await publish_until(publisher, stop)
        return
    ended = asyncio.Event()
    keeping = asyncio.create_task(billing.run(ended))
    told = asyncio.create_task(stop.wait())
    publishing = asyncio.create_task(publish_until(publisher, ended))
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
