"""``sidecar demo``: the whole system on loopback, Lago and OpenMeter included, with three accounts to try."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from aiohttp import web

from sidecar.app import assemble, logs
from sidecar.app.configuration import Config, load_config
from sidecar.app.control_plane import collectors_of
from sidecar.app.data_plane import DataPlane
from sidecar.app.listen_fault import CannotListen
from sidecar.app.serve import admin_server, key_store
from sidecar.app.signals import stop_event
from sidecar.basics.errors import SetupError
from sidecar.basics.listening import listening_sockets
from sidecar.cli.demo_guide import Running, print_guide, print_json, print_usage
from sidecar.cli.output import between, run_async
from sidecar.config.errors import ConfigError
from sidecar.controlplane.control_work import open_control_work
from sidecar.controlplane.memory_watch import MemoryWatch
from sidecar.controlplane.publisher_loop import run_loops
from sidecar.ledger.store import Store, open_store
from sidecar.metering.publisher.publisher import Publisher
from sidecar.sandbox.bank.bank_server import SampleApi
from sidecar.sandbox.demo import (
    LAGO_KEY_BYTES,
    DemoAccount,
    demo_accounts,
    demo_lago,
    demo_meters,
    demo_settings,
    seed_lago,
)
from sidecar.sandbox.lago.lago_server import Lago
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server, ServerError

LOADED_S_MAX = 20
LOOPBACK = "127.0.0.1"


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    proxy_port: Annotated[
        int, typer.Option(callback=between(0, 65_535), metavar="PORT", help="Port of the gateway. 0 takes a free port.")
    ] = 8080,
    admin_port: Annotated[
        int,
        typer.Option(callback=between(0, 65_535), metavar="PORT", help="Port of the admin side. 0 takes a free port."),
    ] = 9090,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when the demo is ready, and nothing else.")
    ] = False,
    valkey: Annotated[str | None, typer.Option(help="URL of a Valkey, instead of an embedded one.")] = None,
    period: Annotated[
        int | None,
        typer.Option(
            callback=between(1, 31_536_000),
            metavar="SECONDS",
            help="Length of a billing period. The default is a month.",
        ),
    ] = None,
) -> None:
    """Run the whole system on this machine, with three accounts to try.

    The demo starts the gateway, a sample Open Banking API, Valkey, and stand-ins for OpenMeter and Lago. They listen on
    loopback addresses. The demo prints commands to try. Press Ctrl-C to end it. It then deletes its data; data in a
    Valkey of your own stays.

    Example: [bold]sidecar demo --proxy-port 0 --admin-port 0 --json[/bold]
    """
    logs.configure("warning", "console")
    try:
        clean = run_async(_demo(proxy_port, admin_port, valkey, period, json=json))
    except ServerError as error:
        raise SetupError(str(error)) from None
    sys.exit(0 if clean else 1)


def _check_ports(**flags: int) -> None:
    """Whether both can be had, before anything starts. Raises `SetupError`."""
    with contextlib.ExitStack() as stack:
        for flag, port in flags.items():
            try:
                for sock in listening_sockets(LOOPBACK, port):
                    stack.enter_context(sock)
                    sock.listen()
            except OSError as error:
                raise CannotListen(error, LOOPBACK, port, f"--{flag.replace('_', '-')}") from None


async def _demo(proxy_port: int, admin_port: int, valkey: str | None, period_s: int | None, *, json: bool) -> bool:
    _check_ports(proxy_port=proxy_port, admin_port=admin_port)
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-demo-")))

        async def serve(app: web.Application) -> str:
            server = Server(app)
            url = await server.start()
            stack.push_async_callback(server.close)
            return url

        api_key, hmac_key = secrets.token_hex(LAGO_KEY_BYTES), secrets.token_hex(LAGO_KEY_BYTES)
        upstream_url = await serve(SampleApi().app())
        openmeter_url = await serve(OpenMeter(OpenMeterConfig(meters=demo_meters())).app())
        lago_url = await serve(Lago(demo_lago(api_key, hmac_key, period_s)).app())
        where = valkey or f"embedded://{directory}/valkey"
        config = _config(
            demo_settings(where, upstream_url, openmeter_url, lago_url, api_key, hmac_key, proxy_port, admin_port)
        )
        store = await stack.enter_async_context(
            open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync)
        )
        control_work = await stack.enter_async_context(open_control_work(config.lago, config.metering, store))
        assert control_work is not None
        accounts = demo_accounts()
        await seed_lago(control_work.lago, accounts)
        plane = DataPlane(config, store.client, key_store(store))
        port = await plane.start()
        publisher = Publisher(store.client, store.keys, config.metering)
        memory = MemoryWatch(store.client, store.keys)
        collectors = collectors_of(publisher, control_work, memory)
        ports = await stack.enter_async_context(
            admin_server(config, store, plane, collectors=collectors, control_work=control_work)
        )
        await control_work.lago.create_webhook_endpoint(
            {
                "webhook_url": f"http://127.0.0.1:{ports.admin}/webhooks/lago",
                "signature_algo": "hmac",
                "name": "gateway",
            }
        )
        # The publisher outlives the gateway, so that what the last requests were charged is counted too.
        stop_control = asyncio.Event()
        controlling = asyncio.create_task(run_loops(publisher, control_work, stop_control))
        watching = asyncio.create_task(memory.run(stop_control))
        stopping = asyncio.create_task(stop.wait())
        printing: asyncio.Task[None] | None = None
        try:
            await _loaded(store, accounts, controlling)
            running = Running(
                proxy=f"http://127.0.0.1:{port}",
                admin=f"http://127.0.0.1:{ports.admin}",
                lago=lago_url,
                openmeter=openmeter_url,
                upstream=upstream_url,
                valkey=valkey or f"valkey+unix://{directory}/valkey/valkey.sock",
                accounts=accounts,
                wallet=(await control_work.lago.wallets(accounts[0].id))[0].lago_id,
                lago_api_key=api_key,
                webhook_hmac_key=hmac_key,
            )
            if json:
                print_json(running)
            else:
                print_guide(running)
                printing = asyncio.create_task(print_usage(running, store, _print))
            await asyncio.wait({stopping, controlling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            watching.cancel()
            try:
                if printing is not None:
                    printing.cancel()
                    await asyncio.gather(printing, return_exceptions=True)
                clean = await plane.stop()
            finally:  # a second signal cancels what is above; the publisher has its own end
                stop_control.set()
                await controlling
        return clean


async def _loaded(store: Store, accounts: tuple[DemoAccount, ...], controlling: asyncio.Task[None]) -> None:
    """Until the control plane has brought the accounts from Lago. Raises `SetupError`: it does not."""
    end_s = time.monotonic() + LOADED_S_MAX
    for account in accounts:
        while (await store.accounts.state(account.id)).version == 0:
            if controlling.done() or time.monotonic() > end_s:
                raise SetupError(f"{account.id} was not loaded from Lago within {LOADED_S_MAX} s")
            await asyncio.sleep(0.02)


def _config(settings: dict[str, object]) -> Config:
    with tempfile.NamedTemporaryFile("wb", suffix=".yaml", prefix="sidecar-demo-") as file:
        file.write(orjson.dumps(settings))  # JSON is YAML
        file.flush()
        try:
            return load_config(Path(file.name), {})
        except ConfigError as error:
            raise SetupError(f"--valkey: {error}") from None


def _print(text: str) -> None:
    print(f"  {text}")
    sys.stdout.flush()
