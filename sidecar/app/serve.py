"""Running a data plane (``sidecar run``) until it is told to stop, and the admin side of any process.

What only a control plane needs is not imported here: it would be a third of a gateway's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.app import assemble
from sidecar.app.accounts_view import AccountsView
from sidecar.app.admin_endpoints import AdminEndpoints, admin_token
from sidecar.app.admin_server import ANSWER_TIMEOUT_S, AdminServer
from sidecar.app.application_checks import ApplicationChecks
from sidecar.app.configuration import Config
from sidecar.app.data_plane import SETTLE_TIMEOUT_S, DataPlane, Health
from sidecar.app.health_endpoints import HealthEndpoints
from sidecar.app.ledger_start import check_ledger
from sidecar.app.metrics import BuildCollector, DataPlaneCollector, EmbeddedCollector, LogCollector
from sidecar.app.signals import Stop
from sidecar.basics.build import request_path
from sidecar.basics.logger import get_logger
from sidecar.identity.types import KeyStore, KeyStoreUnavailable
from sidecar.ledger.accounts.api_keys import ApiKeys
from sidecar.ledger.spool.spool import NO_SPOOL
from sidecar.ledger.store import Store, open_store
from sidecar.metering.outbox.outbox_status import outbox_status
from sidecar.valkey.topology import CLIENT_ERRORS

if TYPE_CHECKING:
    from aiohttp import web

    from sidecar.app.admin_web import AdminWebServer

COLLECT_AFTER = (20_000, 20, 20)
"""New objects after which the youngest are looked through, and after how many looks the older ones are."""
log = get_logger("sidecar")


@dataclass(frozen=True, slots=True)
class Ports:
    """What a process listens on; 0 where there is none. ``further``: the proxy's, of ``listeners``."""

    admin: int
    proxy: int = 0
    health: int = 0
    further: tuple[int, ...] = ()


Ready = Callable[[Ports], None]
"""Called once all of them listen."""
DRAIN_BEGINS_S = 5.0
"""How long who asks whether the gateway has drained waits for it to begin: a pod's containers are told to end at the
same time, and the one that passes it on may come second."""


def key_store(store: Store) -> KeyStore:
    """API keys as identity asks for them."""
    return ApiKeys(store.client, store.keys, unavailable=KeyStoreUnavailable)


class ControlSide(Protocol):
    """What the control work shows and receives (``sidecar.controlplane.control_work``)."""

    @property
    def field_bytes_max(self) -> int: ...

    def status(self) -> dict[str, Any]: ...

    async def handle_webhook(self, request: web.Request) -> web.StreamResponse: ...


def _registry(plane: DataPlane | None, store: Store, collectors: Iterable[Collector]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(BuildCollector())
    registry.register(LogCollector())
    ProcessCollector(registry=registry)
    if plane is not None:
        registry.register(DataPlaneCollector(plane))
    if store.embedded is not None:
        registry.register(EmbeddedCollector(store.embedded))
    for collector in collectors:
        registry.register(collector)
    return registry


def process_document(plane: DataPlane | None) -> dict[str, Any]:
    """What ``/v1/process`` shows."""
    document: dict[str, Any] = {"version": __version__, "request_path": request_path(), "pid": os.getpid()}
    if plane is not None:
        health = plane.health()
        document["ready"] = health.ready
        if health.why:
            document["why"] = health.why
        document["draining"], document["drained"] = plane.gateway.context.draining, plane.drained
    return document


async def status_document(
    store: Store, plane: DataPlane | None, control_work: ControlSide | None = None
) -> dict[str, Any]:
    """What ``/v1/status`` shows."""
    document = process_document(plane)
    if plane is not None:
        document["instance"] = plane.ledger.instance
        document["upstream"] = ", ".join(str(pool.target) for pool in plane.gateway.context.destinations)
        document["connections"] = plane.gateway.taken
        document["ledger"] = {
            "up": plane.ledger.is_up,
            "partitions_down": plane.ledger.partitions_down,
            "backlog_operations": plane.ledger.backlog,
        }
        document["spool"] = plane.spool.status() if plane.spool is not None else {"directory": None, "note": NO_SPOOL}
    document["outbox"] = await _outbox_document(store)
    if control_work is not None:
        document["billing"] = control_work.status()
    return document


async def _outbox_document(store: Store) -> dict[str, Any] | None:
    """None: the ledger cannot be reached."""
    try:
        status = await outbox_status(store.client, store.keys, reachable=True)
    except CLIENT_ERRORS:
        return None
    unreached = store.keys.partitions - len(status.partitions)
    return {
        **({"partitions_unreached": unreached} if unreached else {}),
        "entries": status.entries,
        "events": status.events,
        "oldest_seconds": status.oldest_s,
        "dead_letters": status.dead_letters,
    }


@contextlib.asynccontextmanager
async def admin_server(
    config: Config,
    store: Store,
    plane: DataPlane | None,
    socket_path: str | None = None,
    *,
    collectors: Iterable[Collector] = (),
    control_work: ControlSide | None = None,
) -> AsyncIterator[Ports]:
    """The admin side of one process, and its health port if it has one; yields their ports. Raises `SetupError`."""
    registry = _registry(plane, store, collectors)

    async def health() -> Health:
        return plane.health() if plane is not None else Health(True)

    async def metrics() -> bytes:
        return generate_latest(registry)

    async def status() -> Mapping[str, Any]:
        return await status_document(store, plane, control_work)

    async def process() -> Mapping[str, Any]:
        return process_document(plane)

    async def drained() -> bool:
        if plane is None:
            return False
        return await until_drained(config, lambda: plane.gateway.context.draining, lambda: plane.drained)

    endpoints = AdminEndpoints(
        health, metrics, status, process, AccountsView(store.accounts), admin_token(config.admin, socket_path)
    )
    server: AdminServer | AdminWebServer
    if control_work is None:
        server = AdminServer(
            "admin", config.admin.host, config.admin.listening_port, endpoints, socket_path=socket_path
        )
    else:
        from sidecar.app.admin_web import AdminWebServer

        server = AdminWebServer(
            config.admin, endpoints, webhooks=control_work.handle_webhook, field_bytes_max=control_work.field_bytes_max
        )
    port = await server.start()
    try:
        if socket_path is not None:
            yield Ports(port)
            return
        async with health_server(config, health, metrics, drained if plane is not None else None) as health_port:
            yield Ports(port, health=health_port)
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def health_server(
    config: Config,
    health: Callable[[], Awaitable[Health]],
    metrics: Callable[[], Awaitable[bytes]],
    drained: Callable[[], Awaitable[bool]] | None,
) -> AsyncIterator[int]:
    """The health port of one process; yields 0 if it has none. Raises `SetupError`."""
    settings = config.health
    if settings.port is None:
        yield 0
        return
    checks = ApplicationChecks(settings.application)
    endpoints = HealthEndpoints(health, metrics if settings.metrics else None, drained, checks)
    server = AdminServer(
        "health", settings.host, settings.port, endpoints, answer_timeout_s=ANSWER_TIMEOUT_S + drain_s_max(config)
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.close()


def drain_s_max(config: Config) -> float:
    """How long a drain may take, all in all."""
    limits = config.limits
    return (limits.drain_delay_ms + limits.drain_timeout_ms) / 1000 + SETTLE_TIMEOUT_S


async def until_drained(config: Config, draining: Callable[[], bool], drained: Callable[[], bool]) -> bool:
    """Waits for a drain that has begun, or begins within `DRAIN_BEGINS_S`, to end. False: there is none, or it does
    not."""
    now = asyncio.get_running_loop().time
    begins_s, ends_s = now() + DRAIN_BEGINS_S, now() + DRAIN_BEGINS_S + drain_s_max(config)
    while not drained():
        if now() > (ends_s if draining() else begins_s):
            return False
        await asyncio.sleep(0.05)
    return True


def _freeze_garbage_collector() -> None:
    """What the start made stays until the end: the collector need not look through it again and again. And requests
    leave no cycles behind (``tests/integration/gateway/test_garbage.py``), so it may come seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def run_data_plane(
    config: Config, stop: Stop, ready: Ready, *, port: int | None = None, admin_socket: str | None = None
) -> bool:
    """Serves until ``stop``. False if something had to be cut off. Raises `SetupError`.

    ``port`` and ``admin_socket`` are a worker's: the port that it shares, and where its parent asks it.
    """
    async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
        is_checked = await check_ledger(config, store.client)
        plane = DataPlane(config, store.client, key_store(store), ledger_is_checked=is_checked)
        port = await plane.start(port=port, reuse_port=port is not None)
        try:
            async with admin_server(config, store, plane, admin_socket) as ports:
                _freeze_garbage_collector()
                ports = replace(ports, proxy=port, further=tuple(plane.further_ports))
                ready(ports)
                log.info("serving", version=__version__, request_path=request_path(),
                         host=config.listen.host, port=port,
                         admin_port=ports.admin, **({"health_port": ports.health} if ports.health else {}))  # fmt: skip
                await stop.drain.wait()
                plane.drain()
                await stop.wait()
                return await plane.stop(at_once=stop.at_once)
        except BaseException:  # whatever it was, holds are settled before it is told
            await plane.stop()
            raise
