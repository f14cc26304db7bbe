"""The data plane of one process: ledger client, identity, proxy, reaper, put together and taken down in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sidecar.billing.bells import Bells
from sidecar.config.models import Config
from sidecar.control import assemble
from sidecar.control.assemble import SetupError
from sidecar.control.logs import AccessLog
from sidecar.identity.build import build_chain
from sidecar.identity.peers import TrustedPeers
from sidecar.identity.types import IdentitySetupError, KeyStore
from sidecar.ledger.client import LedgerClient
from sidecar.ledger.endpoints import endpoints
from sidecar.ledger.first_sight import FirstSight, FirstSightSettings
from sidecar.ledger.keys import Keys
from sidecar.ledger.reaper import keep_reaping
from sidecar.ledger.spool import Spool, SpoolError
from sidecar.ledger.topology import Client, TopologyError
from sidecar.logger import get_logger
from sidecar.proxy.gateway import Gateway

log = get_logger("sidecar")


@dataclass(frozen=True, slots=True)
class Health:
    """``ready``: new requests can be served now. ``why``: what keeps them from it."""

    ready: bool
    why: str = ""


class DataPlane:
    """``client`` is for control work (keys, reaping); it belongs to the caller, who also started an embedded server.

    Raises:
        SetupError: certificates, keys or a directory that the configuration names cannot be used.
    """

    def __init__(self, config: Config, client: Client, key_store: KeyStore) -> None:
        self.config = config
        self.port = 0
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False
        self._access_log = AccessLog() if config.log.access != "off" else None
        keys = assemble.keys(config)
        try:
            self.ledger = LedgerClient(
                endpoints(config.valkey),
                keys,
                assemble.link_settings(config),
                heartbeat_s=config.ledger.heartbeat_ms / 1000,
            )
            self.identity = build_chain(config.identity, key_store)
        except (TopologyError, IdentitySetupError) as error:
            raise SetupError(str(error)) from None
        spool = assemble.spool_settings(config)
        self.spool = Spool(spool, self.ledger) if spool is not None else None
        self.first_sight = self._first_sight(keys) if config.lago.url is not None else None
        self._tls = assemble.listen_tls(config)
        self.gateway = Gateway(
            settings=assemble.proxy_settings(config),
            upstream=assemble.upstream_target(config),
            routes=assemble.route_table(config),
            identity=self.identity,
            ledger=self.ledger,
            trusts=TrustedPeers(config.trusted_peers).trusts,
            spool=self.spool,
            first_sight=self.first_sight,
            access_log=self._access_log,
        )

    def _first_sight(self, keys: Keys) -> FirstSight:
        """A control plane answers the doorbell that an unknown account rings."""
        bells = Bells(self._client, keys)

        async def ring(name: str) -> None:
            await bells.ring([name])

        waits = FirstSightSettings(
            wait_s=self.config.ledger.first_sight_ms / 1000, refused_s=self.config.lago.reconcile.absent_s
        )
        return FirstSight(self._client, keys, ring, waits)

    async def start(self, *, port: int | None = None, reuse_port: bool = False) -> int:
        """Connects and listens; returns the port. Valkey may be away: then requests are refused until it is back.

        Raises:
            SetupError: the port cannot be bound, or the spool's directory cannot be written.
        """
        config = self.config
        self.ledger.start()
        try:
            if self.spool is not None:
                self.spool.start()
            await self.identity.start()
        except (SpoolError, IdentitySetupError) as error:
            raise SetupError(str(error)) from None
        await self.ledger.wait_ready(2.0)
        listen = config.listen
        wanted = listen.port if port is None else port
        try:
            self.port = await self.gateway.listen(
                listen.host,
                wanted,
                tls=self._tls,
                backlog=listen.backlog,
                reuse_port=reuse_port or listen.reuse_port,
            )
        except OSError as error:
            raise SetupError(f"listen: {listen.host}:{wanted}: {error.strerror or error}") from None
        self._started = True
        loop = asyncio.get_running_loop()
        ttl_ms = config.ledger.instance_ttl_ms
        self._tasks.append(loop.create_task(keep_reaping(self._client, self.ledger.keys, ttl_ms)))
        return self.port

    def health(self) -> Health:
        if self.gateway.draining:
            return Health(False, "the gateway is stopping")
        if not self._started:
            return Health(False, "the gateway is starting")
        if not self.ledger.is_up and self.spool is None:
            return Health(False, "Valkey does not answer")
        return Health(True)

    async def stop(self) -> bool:
        """Drains: no new requests, those under way end, holds settle. False if something had to be cut off."""
        config = self.config
        clean = await self.gateway.drain(config.limits.drain_timeout_ms / 1000)
        if self.first_sight is not None:
            await self.first_sight.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.spool is not None:
            await self.spool.stop_replaying()
        settled = await self.ledger.close(5.0)
        if self.spool is not None:
            if not settled:
                self.spool.keep(self.ledger.take_unsent())
            await self.spool.close()
        await self.identity.close()
        if self._access_log is not None:
            self._access_log.flush()
        log.info("stopped", drained=clean, settled=settled)
        return clean and settled
