"""The data plane of one process: ledger client, identity, proxy, reaper, put together and taken down in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.app.ledger_start import check_ledger_later
from sidecar.app.listen_fault import CannotListen
from sidecar.app.logs import AccessLog
from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.billing.reconcile.reload_requests import SWEEP, ReloadRequests
from sidecar.gateway.admission.descriptors import raise_limit
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.gateway import Gateway
from sidecar.gateway.parameters import OriginalDestinations, ProxySettings, UpstreamTarget
from sidecar.gateway.settings import UpstreamTlsSettings
from sidecar.identity.build import build_chain
from sidecar.identity.peers import TrustedPeers
from sidecar.identity.types import IdentitySetupError, KeyStore
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.reaper import keep_reaping
from sidecar.ledger.client.unknown_accounts import UnknownAccounts, UnknownAccountSettings
from sidecar.ledger.keys import Keys, partitions_text
from sidecar.ledger.spool.adoption import Adoption
from sidecar.ledger.spool.dead_spools import DeadSpools
from sidecar.ledger.spool.spool import NO_SPOOL, Spool, SpoolError, SpoolSettings, log_charges
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.topology import CLIENT_ERRORS, Client, TopologyError

log = get_logger("sidecar")

ENTER_TIMEOUT_S: Final = 1.0
"""For a registration that is under way when the start fails."""

SWEEP_ATTEMPTS: Final = 60
"""Seconds for which a request to read all accounts again is tried."""

SETTLE_TIMEOUT_S: Final = 5.0
"""For what requests hold to be settled in Valkey when they have ended."""


@dataclass(frozen=True, slots=True)
class Health:
    """``ready``: new requests can be served now. ``why``: what keeps them from it, or some of them."""

    ready: bool
    why: str = ""


class DataPlane:
    """``client`` is for control work (keys, reaping); it belongs to the caller, who also started an embedded server.
    ``ledger_is_checked`` False: Valkey could not be reached yet, and what it has is checked when it can.

    Raises:
        SetupError: certificates, keys or a directory that the configuration names cannot be used.
    """

    def __init__(self, config: Config, client: Client, key_store: KeyStore, *, ledger_is_checked: bool = True) -> None:
        self.config = config
        self.port = 0
        self.further_ports: list[int] = []
        """Of the configuration's ``listeners``."""
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False
        self._ledger_seen = False
        self._draining: asyncio.Task[bool] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._access_log = AccessLog(config.log.format) if config.log.access != "off" else None
        self._ledger_is_checked = ledger_is_checked
        keys, settings = assemble.keys(config), assemble.link_settings(config)
        try:
            self.ledger = LedgerClient(
                endpoints(config.valkey),
                keys,
                # Who has not seen what is there makes nothing there: it may be a ledger of another format.
                replace(settings, create=settings.create and ledger_is_checked),
                heartbeat_s=config.ledger.heartbeat_ms / 1000,
                on_loss=self._request_sweep,
            )
            self.identity = build_chain(config.identity, key_store)
        except (TopologyError, IdentitySetupError) as error:
            raise SetupError(str(error)) from None
        spool = assemble.spool_settings(config)
        self.spool = Spool(spool, self.ledger) if spool is not None else None
        self.dead_spools = self._make_dead_spools(spool, keys, settings) if spool is not None else None
        self.unknown_accounts = self._make_unknown_accounts(keys) if config.lago.url is not None else None
        self._tls = assemble.listen_tls(config)
        self._upstream = assemble.upstream_target(config)
        context = GatewayContext(
            settings=self._settings(),
            routes=assemble.route_table(config),
            identity=self.identity,
            ledger=self.ledger,
            trusts=TrustedPeers(config.trusted_peers).trusts,
            spool=self.spool if spool is not None and spool.allowance_units is not None else None,
            unknown_accounts=self.unknown_accounts,
            access_log=self._access_log,
        )
        self.gateway = Gateway(context)

    def _settings(self) -> ProxySettings:
        """With as many connections as there are descriptors for."""
        config = self.config
        descriptors = raise_limit()
        room = assemble.allotment(config, descriptors)
        wanted, upstream = config.limits.connections_max, config.upstream.connections_max
        if room.connections < wanted or room.upstream < upstream:
            log.warning("there are too few file descriptors for all connections", descriptors=descriptors,
                        connections_max=room.connections, wanted=wanted,
                        upstream_connections_max=room.upstream, upstream_wanted=upstream)  # fmt: skip
        settings = assemble.proxy_settings(config)
        return replace(settings, connections_max=room.connections, upstream_connections_max=room.upstream)

    def _make_dead_spools(self, spool: SpoolSettings, keys: Keys, link: LinkSettings) -> DeadSpools:
        return DeadSpools(spool.directory, Adoption(self._client, keys, link), self.ledger.instance)

    def _request_sweep(self) -> None:
        """Valkey lost data: funds and prices that were loaded since are lost too, so all are read again."""
        if self.config.lago.url is None or (self._sweeping is not None and not self._sweeping.done()):
            return
        self._sweeping = asyncio.get_running_loop().create_task(self._add_sweep())

    async def _add_sweep(self) -> None:
        for _ in range(SWEEP_ATTEMPTS):
            try:
                await ReloadRequests(self._client, self.ledger.keys).add([SWEEP])
            except CLIENT_ERRORS as error:
                log.warning("a reload of all accounts cannot be requested", error=reason_of(error)[:200])
                await asyncio.sleep(1)
            else:
                return

    def _make_unknown_accounts(self, keys: Keys) -> UnknownAccounts:
        """A control plane handles the reload request for an unknown account."""
        requests = ReloadRequests(self._client, keys)

        async def request_reload(name: str) -> None:
            await requests.add_for_stranger(name)

        waits = UnknownAccountSettings(
            wait_s=self.config.ledger.unknown_account_wait_ms / 1000, refused_s=self.config.lago.reconcile.absent_s
        )
        return UnknownAccounts(self._client, keys, request_reload, waits)

    async def start(self, *, port: int | None = None, reuse_port: bool = False) -> int:
        """Connects and listens; returns the port. Valkey may be away: then requests are refused until it is back.

        A start that fails takes down what has started: an instance that stays registered would look like a dead one.

        Raises:
            SetupError: the port cannot be bound, or the spool's directory cannot be written.
        """
        try:
            await self._start(port, reuse_port=reuse_port)
        except BaseException:  # a cancelled start too
            await self.gateway.drain(0)
            await self.ledger.wait_ready(ENTER_TIMEOUT_S)  # who is about to be registered could not leave
            await self._take_down()
            raise
        return self.port

    async def _start(self, port: int | None, *, reuse_port: bool) -> None:
        config = self.config
        try:
            self._start_spool()
            await self.identity.start()
        except (SpoolError, IdentitySetupError) as error:
            raise SetupError(str(error)) from None
        self.ledger.start()
        await self.ledger.wait_ready(2.0)
        self._ledger_seen = self.ledger.is_up_in_part
        first = config.listen.port if port is None else port
        self.port = await self._listen(first, self._upstream, reuse_port, "listen.port")
        for index, listener in enumerate(config.listeners):
            target = assemble.target_of(listener.upstream, UpstreamTlsSettings())
            setting = f"listeners[{index}].port"
            self.further_ports.append(await self._listen(listener.port, target, reuse_port, setting))
        self._started = True
        loop = asyncio.get_running_loop()
        ttl_ms = config.ledger.instance_ttl_ms
        if self.dead_spools is not None:
            self._tasks.append(loop.create_task(self.dead_spools.keep_replaying(lambda: self.ledger.is_up)))
        self._tasks.append(loop.create_task(keep_reaping(self._client, self.ledger.keys, ttl_ms)))
        if not self._ledger_is_checked:
            self._tasks.append(loop.create_task(check_ledger_later(config, self._client)))

    def _start_spool(self) -> None:
        """Raises `SpoolError`: a configured directory cannot be used."""
        if self.spool is None:
            log.warning(NO_SPOOL)
            return
        try:
            self.spool.start()
        except SpoolError as error:
            if not self.spool.settings.is_default:
                raise
            log.warning("charges that wait for Valkey are not on disk: the default directory cannot be used",
                        reason=str(error))  # fmt: skip
            self.spool = self.dead_spools = None

    async def _listen(
        self, port: int, upstream: UpstreamTarget | OriginalDestinations, reuse_port: bool, setting: str
    ) -> int:
        listen = self.config.listen
        try:
            return await self.gateway.listen(
                listen.host,
                port,
                upstream,
                tls=self._tls,
                proxy_protocol=listen.proxy_protocol == "v2",
                backlog=listen.backlog,
                reuse_port=reuse_port or listen.reuse_port,
            )
        except OSError as error:
            raise CannotListen(error, listen.host, port, setting) from None

    def health(self) -> Health:
        """Whether clients should come here.

        A ledger that goes away later changes nothing: it goes away for all gateways, and a Service without endpoints
        has no 503 with ``Retry-After`` for anybody, and no route that is free. One that was never there is this
        gateway's own trouble, such as a wrong password, and a rollout of it has to stop. Of a Cluster a part is enough:
        the accounts on it are served, and others get 503 from every gateway.
        """
        self._ledger_seen = self._ledger_seen or self.ledger.is_up_in_part
        if self.gateway.context.draining:
            return Health(False, "the gateway is stopping")
        if not self._started:
            return Health(False, "the gateway is starting")
        if not self._ledger_seen and self.gateway.context.spool is None:
            return Health(False, "Valkey has not answered yet")
        return Health(True, self._degraded())

    def _degraded(self) -> str:
        """Which partitions of a Cluster are away, while others are not."""
        down = self.ledger.partitions_down
        if not down or not self.ledger.is_up_in_part:
            return ""
        of = self.ledger.keys.partitions
        return f"degraded: {len(down)} of {of} partitions of the ledger cannot be reached: {partitions_text(down)}"

    def drain(self, *, at_once: bool = False) -> asyncio.Task[bool]:
        """Begins to drain, once: no new clients, requests under way end, what they hold settles. The task's result is
        False if something had to be cut off. ``at_once``: without waiting for clients that may still come."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        if at_once:
            self.gateway.skip_drain_delay()
        return self._draining

    async def _drain(self) -> bool:
        limits = self.config.limits
        self.gateway.context.draining = True  # readiness must fail from this turn on
        log.info("draining", delay_ms=limits.drain_delay_ms)
        clean = await self.gateway.drain(limits.drain_timeout_ms / 1000, limits.drain_delay_ms / 1000)
        await self.ledger.drain(SETTLE_TIMEOUT_S)
        return clean

    @property
    def drained(self) -> bool:
        return self._draining is not None and self._draining.done()

    async def stop(self, *, at_once: bool = True) -> bool:
        """Drains and takes everything down. False if something had to be cut off."""
        clean = await self.drain(at_once=at_once)
        settled = await self._take_down()
        log.info("stopped", drained=clean, settled=settled)
        return clean and settled

    async def _take_down(self) -> bool:
        """False: the ledger has not confirmed all operations."""
        if self.unknown_accounts is not None:
            await self.unknown_accounts.close()
        tasks = [*self._tasks, self._sweeping] if self._sweeping is not None else self._tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        settled = await self.ledger.close(SETTLE_TIMEOUT_S)
        if self.spool is not None:
            await self.spool.close()
        elif not settled:
            log_charges(self.ledger.seal_waiting(), why="ledger.spool_directory is not set")
        await self.identity.close()
        if self._access_log is not None:
            self.gateway.context.end_log_window()
            self._access_log.flush()
        return settled
