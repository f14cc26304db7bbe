"""A gateway and a control plane between the given Lago and OpenMeter, and what a scenario does and reads there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.app.data_plane import DataPlane
from sidecar.app.ledger_start import check_ledger
from sidecar.app.serve import admin_server, key_store
from sidecar.basics.errors import SetupError
from sidecar.billing.lago.models import ChargeUsage
from sidecar.cli.verify_billing.names import Names
from sidecar.cli.verify_billing.options import LOOPBACK, Options, path_of
from sidecar.cli.verify_billing.own_lago import OwnLago
from sidecar.cli.verify_billing.provisioning import Provisioning
from sidecar.controlplane.control_work import ControlWork
from sidecar.controlplane.publisher_loop import run_loops
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot
from sidecar.ledger.store import Store, open_store
from sidecar.metering.openmeter.access import Access
from sidecar.metering.openmeter.meter_query import MeterQuery, QueryError
from sidecar.metering.publisher.publisher import Publisher

T = TypeVar("T")

LOOK_S: Final = 0.1
"""Between two looks at the ledger, which is near."""
ASK_S: Final = 0.5
"""Between two questions to Lago or OpenMeter, which have others to answer."""
MARGIN_MS: Final = 120_000
"""Before and after a run, so that OpenMeter's usage of the run is all in between."""
EVENTS: Final = "application/cloudevents-batch+json"


class NotSeen(Exception):
    """Something did not become true in time. The message says what."""


class Rig:
    """The running system. ``events`` sends events to OpenMeter past the gateway, as a stranger could."""

    def __init__(
        self,
        options: Options,
        lago: OwnLago,
        query: MeterQuery,
        store: Store,
        control_work: ControlWork,
        http: aiohttp.ClientSession,
        events: Access,
        gateway: str,
        stand_in: str | None,
    ) -> None:
        self.options = options
        self.names: Names = options.names
        self.lago = lago
        self.query = query
        self.make = Provisioning(options.names, lago, query)
        self.stand_in = stand_in
        """Where the controls of a stand-in of Lago are; None for a Lago."""
        self._store = store
        self._control_work = control_work
        self._http = http
        self._events = events
        self._gateway = gateway
        self._began_ms = int(time.time()) * 1000
        self._stop_control: Callable[[], Awaitable[None]] | None = None

    def __repr__(self) -> str:
        return f"Rig({self.names.prefix}, {self._gateway})"

    # calls

    async def call(self, account: str, units: int = 1) -> int:
        """One call through the gateway; the status of its answer."""
        return await self.call_path(account, path_of(units))

    async def call_path(self, account: str, path: str) -> int:
        async with self._http.get(self._gateway + path, headers={"X-TPP-Id": account}) as answer:
            await answer.read()
            return answer.status

    async def calls(self, account: str, count: int, units: int = 1) -> list[int]:
        """One after the other."""
        return [await self.call(account, units) for _ in range(count)]

    async def send_events(self, subject: str, ids: Sequence[str], units: int = 1) -> None:
        """Events straight to OpenMeter. Raises `QueryError`: it does not take them."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = orjson.dumps(
            [
                {
                    "specversion": "1.0", "id": each, "source": self.names.prefix, "type": self.names.event_type,
                    "subject": subject, "time": now, "data": {"metric": self.names.metric, "units": units},
                }
                for each in ids
            ]
        )  # fmt: skip
        headers = {"Content-Type": EVENTS, **self._events.headers}
        url = f"{self._events.url}/api/v1/events"
        async with self._http.post(url, data=body, headers=headers) as answer:
            if answer.status >= 300:
                raise QueryError(f"OpenMeter answers {answer.status} to events", transient=False)

    # the ledger

    async def ledger(self, account: str) -> AccountSnapshot:
        """Raises `NotSeen`: it is not there."""
        snapshot = await self._store.accounts.show(account)
        if snapshot is None:
            raise NotSeen(f"{account} in the ledger")
        return snapshot

    async def until_loaded(self, account: str, available: Decimal | None = None) -> float:
        """Until the ledger has the account, with so much to spend if given; how many seconds that took. It asks for
        nothing: a sweep or a webhook has to bring it."""

        async def is_loaded() -> bool:
            snapshot = await self._store.accounts.show(account)
            return (
                snapshot is not None
                and snapshot.version > 0
                and bool(snapshot.metrics)
                and (available is None or snapshot.available == available)
            )

        wanted = "" if available is None else f" with {available} to spend"
        return await self.until(f"{account}{wanted} in the ledger", is_loaded, LOOK_S)

    # the other books

    async def usage(self, account: str) -> ChargeUsage | None:
        """What Lago has of the current period."""
        found = await self.lago.current_usage(account, self.names.subscription(account))
        charges = found.charges if found is not None else ()
        return next((each for each in charges if each.metric_code == self.names.metric), None)

    async def lago_units(self, account: str) -> Decimal:
        usage = await self.usage(account)
        return usage.units if usage is not None else Decimal(0)

    async def lago_cents(self, account: str) -> int:
        """The whole current usage with taxes."""
        found = await self.lago.current_usage(account, self.names.subscription(account))
        return found.total_cents if found is not None else 0

    async def openmeter_units(self, subject: str, metric: str | None = None) -> Decimal:
        """Of the whole run, of the run's usual metric by default. Raises `QueryError`."""
        to_ms = int(time.time()) * 1000 + MARGIN_MS
        rows = await self.query.usage(
            metric or self.names.metric, self._began_ms - MARGIN_MS, to_ms, subject=subject, window=None
        )
        fault = next((row.fault for row in rows if row.fault), "")
        if fault:
            raise QueryError(f"OpenMeter's row of {subject} {fault}", transient=False)
        return Decimal(sum(row.units for row in rows))

    async def flush(self, account: str) -> None:
        """Pushes the account's usage to Lago. Raises `NotSeen`."""
        if not await self._control_work.ask_leader_to_flush(account, self.options.timeout_s):
            raise NotSeen(f"a push of the usage of {account}")

    def webhooks_taken(self, kind: str) -> int:
        """How many webhooks came whose type begins like this, and had a valid signature."""
        taken = self._control_work.receiver.metrics.taken
        return sum(number for (label, _), number in taken.items() if label.startswith(kind))

    def webhooks_refused(self) -> dict[str, int]:
        """How many, by reason."""
        return dict(self._control_work.receiver.metrics.refused)

    # waiting

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], look_s: float = ASK_S) -> float:
        """How many seconds it took. Raises `NotSeen`: longer than there is time."""
        began_s = time.monotonic()
        while not await holds():
            if time.monotonic() - began_s > self.options.timeout_s:
                raise NotSeen(what)
            await asyncio.sleep(look_s)
        return time.monotonic() - began_s

    async def eventually(self, read: Callable[[], Awaitable[T]], expected: T) -> T:
        """What is read as soon as it is what is expected, or in the end."""
        found = await read()

        async def is_expected() -> bool:
            nonlocal found
            found = await read()
            return found == expected

        with contextlib.suppress(NotSeen):
            await self.until("", is_expected)
        return found

    # a stand-in's clock

    async def move_clock(self, to_s: float) -> None:
        """Moves the clock of Lago's stand-in. The control plane is stopped before: its clock stays. So this is the
        last thing in a run."""
        assert self.stand_in is not None
        if self._stop_control is not None:
            await self._stop_control()
        async with self._http.post(f"{self.stand_in}/clock", json={"now": to_s}) as answer:
            if answer.status != 200:
                raise SetupError(f"the stand-in of Lago does not move its clock: {(await answer.text())[:200]}")

    def stop_control_by(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stop_control = stop


@contextlib.asynccontextmanager
async def open_rig(options: Options, config: Config, lago: OwnLago, query: MeterQuery) -> AsyncIterator[Rig]:
    """The system, from Valkey to the gateway. The API that ``config`` names listens already.

    Raises:
        SetupError: something that an option names cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync)
        )
        await check_ledger(config, store.client)
        control_work = ControlWork(config.lago, config.metering, store, lago, query)
        stack.push_async_callback(control_work.receiver.close)
        ports = await stack.enter_async_context(admin_server(config, store, None, control_work=control_work))
        stop = asyncio.Event()
        publisher = Publisher(store.client, store.keys, config.metering)
        controlling = asyncio.create_task(run_loops(publisher, control_work, stop))

        async def stop_control() -> None:
            stop.set()
            await controlling

        stack.push_async_callback(stop_control)
        plane = DataPlane(config, store.client, key_store(store))
        port = await plane.start()
        stack.push_async_callback(plane.stop)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        stand_in = await controls_of(options.lago, http)
        gateway = f"http://{LOOPBACK}:{port}"
        events = Access(config.metering)
        rig = Rig(options, lago, query, store, control_work, http, events, gateway, stand_in)
        rig.stop_control_by(stop_control)
        if options.webhook_url is not None:
            await _register_webhooks(options, lago, options.webhook_url, ports.admin)
        await rig.make.basis()
        yield rig


async def _register_webhooks(options: Options, lago: OwnLago, url: str, admin_port: int) -> None:
    parts = urlsplit(url)
    if parts.port == 0:
        url = parts._replace(netloc=f"{parts.hostname}:{admin_port}").geturl()
    algorithm = "hmac" if options.secrets.webhook_hmac_key_file is not None else "jwt"
    await lago.create_webhook_endpoint(
        {"webhook_url": url, "signature_algo": algorithm, "name": options.names.of("gateway")}
    )


async def controls_of(lago: str, http: aiohttp.ClientSession) -> str | None:
    """Where the controls of a stand-in are; None: this is a Lago.

    Raises:
        SetupError: the clock of the stand-in was moved, so that nothing could be compared.
    """
    try:
        async with http.get(f"{lago}/sandbox/clock", allow_redirects=False) as answer:
            document: Any = orjson.loads(await answer.read()) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
        return None
    now = document.get("now") if isinstance(document, dict) else None
    if not isinstance(now, int | float):
        return None
    if abs(now - time.time()) > MARGIN_MS / 1000:
        raise SetupError(f"the clock of the stand-in of Lago is {now - time.time():+,.0f} s away: start a new one")
    return f"{lago}/sandbox"


def small_api() -> web.Application:
    """The API behind the gateway: it answers 200 to everything."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"Data": {}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app
