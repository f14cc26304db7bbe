"""A gateway in the test's loop, between a scripted API and a real Valkey, and the books that must balance after it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import redis
from redis.asyncio import Redis

from sidecar.config.path_template import parse_template
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.gateway import Gateway
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.parameters import ProxySettings, UpstreamTarget
from sidecar.gateway.routes import Route, RouteTable
from sidecar.gateway.upstream import UpstreamPool
from sidecar.identity.build import build_chain
from sidecar.identity.chain import IdentityChain
from sidecar.identity.peers import TrustedPeers
from sidecar.identity.settings import ApiKeySettings, MtlsSettings, ResolverSettings, TrustedHeaderSettings
from sidecar.identity.types import KeyStoreUnavailable
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.api_keys import ApiKeys, digest_of
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.ledger.spool.spool import Spool, SpoolSettings
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.url import parse_valkey_url
from tests.integration.gateway.api import Api, Script
from tests.integration.gateway.wire import TIMEOUT_S, Message, Wire, connect

KEY = b"X-API-Key: this-is-the-key-of-tpp\r\n"
HOST = b"Host: api.bank.example\r\n"
PATIENT = ProxySettings(access_log="all")
"""No time limit of the defaults runs out in a test."""


def account(id: str = "tpp", mode: str = "postpaid", **changes: Any) -> AccountSpec:
    """An account whose key is ``this-is-the-key-of-<id>`` and whose calls cost 0.10."""
    options: dict[str, Any] = {
        "currency": "GBP",
        "period": CalendarPeriods("month"),
        "prices": {"api_calls": Standard(Decimal("0.10")), "payments": Standard(Decimal("0.25"))},
        "api_keys": (digest_of(f"this-is-the-key-of-{id}"),),
    }
    return AccountSpec(id=id, mode=mode, **{**options, **changes})  # type: ignore[arg-type]


def route(path: str, *methods: str, **options: Any) -> Route:
    """A route of a configuration."""
    allowed = frozenset(method.encode() for method in methods) or None
    return Route(name=path, template=parse_template(path), methods=allowed, **options)


def get(target: bytes = b"/accounts", *lines: bytes, key: bytes = KEY, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (method, target, HOST, key, b"".join(line + b"\r\n" for line in lines))


def post(body: bytes, *lines: bytes, target: bytes = b"/payments", method: bytes = b"POST") -> bytes:
    """A request with a body of known length."""
    return get(target, b"Content-Length: %d" % len(body), *lines, method=method) + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


@dataclass
class Rig:
    """What runs, and how to look at it."""

    gateway: Gateway
    pool: UpstreamPool
    port: int
    api: Api
    ledger: LedgerClient
    loader: AccountLoader
    client: Redis
    accounts: tuple[str, ...]
    log: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    link: LinkSettings
    wires: list[Wire] = field(default_factory=list)

    async def connect(self, **options: Any) -> Wire:
        wire = await connect(self.port, **options)
        self.wires.append(wire)
        return wire

    async def ask(self, request: bytes, **options: Any) -> Message:
        """One request on a connection of its own."""
        wire = await self.connect(**options)
        await wire.send(request)
        return await wire.response(request.partition(b" ")[0])

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for what must come to be."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.002)

    async def idle(self) -> None:
        """Until no request is under way and the ledger knows all."""
        await self.until(
            lambda: not self.gateway.context.detached and not any(c.relay for c in self.gateway.connections)
        )
        assert await self.ledger.drain(TIMEOUT_S)

    async def events(self) -> list[tuple[str, str, int, str, str, int]]:
        """(account, metric, units, route, method, status) of every event in the outbox, in order."""
        return [tuple(event[:6]) for event in await self.whole_events()]

    async def whole_events(self) -> list[list[Any]]:
        await self.idle()
        keys = self.ledger.keys
        entries: list[Any] = []
        for partition in range(keys.partitions):
            entries += await self.client.xrange(keys.outbox(partition)) or []
        return [event for _, fields in entries for event in orjson.loads(fields[b"e"])]

    async def charged(self) -> list[int]:
        """Statuses of the events."""
        return [event[5] for event in await self.events()]

    async def check_books(self) -> None:
        """No hold is left, and what was settled is what the events say."""
        counted: dict[tuple[str, str], int] = {}
        for event in await self.events():
            counted[event[0], event[1]] = counted.get((event[0], event[1]), 0) + event[2]
        for name in self.accounts:
            shown = await self.loader.show(name)
            assert shown is not None
            for usage in shown.metrics:
                assert usage.held == 0, f"{name} still holds {usage.held} {usage.metric}"
                assert usage.settled == counted.get((name, usage.metric), 0), f"{name}: N is not the sum of its events"


def _at(port: int, target: UpstreamTarget) -> UpstreamTarget:
    """The scripted API, unless the test names a port or path of its own."""
    return target if target.path or target.port != UpstreamTarget().port else replace(target, port=port)


async def _started_ledger(client: Redis, keys: Keys, link: LinkSettings) -> LedgerClient:
    where = client.connection_pool.connection_kwargs
    ledger = LedgerClient(endpoints(parse_valkey_url(f"valkey://{where['host']}:{where['port']}")), keys, link)
    ledger.start()
    assert await ledger.wait_ready(TIMEOUT_S)
    return ledger


async def _started_identity(client: Redis, keys: Keys) -> IdentityChain:
    resolvers: list[ResolverSettings] = [
        TrustedHeaderSettings(type="trusted_header"),
        MtlsSettings(type="mtls"),
        ApiKeySettings(type="api_key"),
    ]
    identity = build_chain(resolvers, ApiKeys(client, keys, unavailable=KeyStoreUnavailable))
    await identity.start()
    return identity


@asynccontextmanager
async def beside(rig: Rig) -> AsyncIterator[Rig]:
    """Another gateway with the settings, the API, the Valkey and the accounts of ``rig``. The books are common."""
    ledger = await _started_ledger(rig.client, rig.ledger.keys, rig.link)
    identity = await _started_identity(rig.client, rig.ledger.keys)
    like = rig.gateway.context
    context = GatewayContext(
        settings=like.settings, routes=like.routes, identity=identity, ledger=ledger, trusts=like.trusts
    )
    gateway = Gateway(context)
    try:
        port = await gateway.listen("127.0.0.1", 0, rig.pool.target)
        (pool,) = context.destinations
        yield replace(rig, gateway=gateway, pool=pool, port=port, ledger=ledger, log=[], wires=[])
        assert await gateway.drain(TIMEOUT_S), "the gateway could not end in order"
    finally:
        await gateway.drain(0.0)
        await ledger.close()
        await identity.close()


@asynccontextmanager
async def running(
    valkey: redis.Redis,
    script: Script,
    *,
    settings: ProxySettings = PATIENT,
    limits: Limits | None = None,
    accounts: Sequence[AccountSpec] = (),
    routes: Sequence[Route] = (),
    default: Route | None = None,
    trusted: Sequence[str] = (),
    upstream: UpstreamTarget | None = None,
    api_tls: ssl.SSLContext | None = None,
    api_path: Path | None = None,
    tls: ssl.SSLContext | None = None,
    proxy_protocol: bool = False,
    hold_budget_s: float = TIMEOUT_S,
    unpaid_per_second: float = 50.0,
    unpaid_burst: int = 500,
    spool_directory: Path | None = None,
    **changes: Any,
) -> AsyncIterator[Rig]:
    """A rig; ``changes`` are settings. Its end checks the totals, and that nothing failed unseen."""
    loop = asyncio.get_running_loop()
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    settings = replace(settings, limits=limits or settings.limits, **changes)
    where = valkey.connection_pool.connection_kwargs
    keys = Keys(partitions=2)
    log: list[dict[str, Any]] = []
    api = Api(script)
    api_port = await api.start(tls=api_tls, path=api_path)
    async with Redis(host=where["host"], port=where["port"]) as client:
        loader = AccountLoader(client, keys)
        specs = tuple(accounts) or (account(),)
        for spec in specs:
            await loader.load(spec)
        link = LinkSettings(hold_budget_s=hold_budget_s, unpaid_per_second=unpaid_per_second, unpaid_burst=unpaid_burst)
        ledger = await _started_ledger(client, keys, link)
        identity = await _started_identity(client, keys)
        spool = None
        if spool_directory is not None:
            spool = Spool(SpoolSettings(spool_directory, allowance_units=2, bytes_max=1_000_000), ledger)
            spool.start()
        context = GatewayContext(
            settings=settings,
            routes=RouteTable(routes, default or Route("(other)")),
            identity=identity,
            ledger=ledger,
            trusts=TrustedPeers(trusted).trusts,
            spool=spool,
            access_log=lambda line: log.append(orjson.loads(line)),
        )
        gateway = Gateway(context)
        target = _at(api_port, upstream or UpstreamTarget())
        port = await gateway.listen("127.0.0.1", 0, target, tls=tls, proxy_protocol=proxy_protocol)
        (pool,) = gateway.context.destinations
        rig = Rig(gateway, pool, port, api, ledger, loader, client, tuple(spec.id for spec in specs), log, faults, link)
        try:
            yield rig
            for wire in rig.wires:
                wire.close()
            assert await gateway.drain(TIMEOUT_S), "the gateway could not end in order"
            await rig.check_books()
            await rig.until(lambda: not pool.size)  # no connection to the API is left
        finally:
            await gateway.drain(0.0)
            await ledger.close()
            if spool is not None:
                await spool.close()
            await identity.close()
            await api.close()
    assert not faults, faults
