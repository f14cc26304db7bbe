"""``sidecar demo``: the whole system on loopback, Lago and OpenMeter included, with three accounts to try."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

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
from sidecar.cli.output import console, errors, run_async
from sidecar.config.errors import ConfigError
from sidecar.controlplane.billing import open_billing
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


@dataclass(frozen=True, slots=True)
class Running:
    """Where everything listens."""

    proxy: str
    admin: str
    lago: str
    openmeter: str
    upstream: str
    valkey: str
    accounts: tuple[DemoAccount, ...]
    lago_api_key: str = field(repr=False)
    webhook_hmac_key: str = field(repr=False)

    def document(self) -> dict[str, Any]:
        """The line of ``--json``."""
        return {
            "proxy": self.proxy,
            "admin": self.admin,
            "lago": self.lago,
            "openmeter": self.openmeter,
            "upstream": self.upstream,
            "valkey": self.valkey,
            "accounts": [{"id": a.id, "mode": a.mode, "api_key": a.api_key} for a in self.accounts],
            "lago_api_key": self.lago_api_key,
            "webhook_hmac_key": self.webhook_hmac_key,
        }


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    proxy_port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the gateway; 0 picks a free one.")] = 8080,
    admin_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the admin side; 0 picks a free one.")
    ] = 9090,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready, nothing else.")] = False,
    valkey: Annotated[str | None, typer.Option(help="URL of a Valkey to use, instead of an embedded one.")] = None,
    period: Annotated[
        int | None, typer.Option(min=1, max=31_536_000, help="Length of a billing period in seconds; else a month.")
    ] = None,
) -> None:
    """Run the whole system on loopback: gateway, sample Open Banking API, Valkey, stand-ins of OpenMeter and Lago, and
    three accounts.

    Everything is gone when it ends (Ctrl-C), but for what is in a Valkey of your own.

    Example: [bold]sidecar demo --proxy-port 0 --admin-port 0 --json[/bold]
    """
    logs.configure("warning", "console")
    tell = _print_json if json else _print_guide
    try:
        clean = run_async(_demo(proxy_port, admin_port, valkey, period, tell))
    except ServerError as error:
        raise SetupError(str(error)) from None
    except CannotListen as error:
        flag = "--admin-port" if error.setting == "admin.port" else "--proxy-port"
        raise SetupError(error.said_of(flag)) from None
    sys.exit(0 if clean else 1)


async def _demo(
    proxy_port: int, admin_port: int, valkey: str | None, period_s: int | None, tell: Callable[[Running], None]
) -> bool:
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
        billing = await stack.enter_async_context(open_billing(config.lago, config.metering, store))
        assert billing is not None
        accounts = demo_accounts()
        await seed_lago(billing.lago, accounts)
        plane = DataPlane(config, store.client, key_store(store))
        port = await plane.start()
        publisher = Publisher(store.client, store.keys, config.metering)
        ports = await stack.enter_async_context(
            admin_server(config, store, plane, collectors=collectors_of(publisher, billing), billing=billing)
        )
        await billing.lago.create_webhook_endpoint(
            {
                "webhook_url": f"http://127.0.0.1:{ports.admin}/webhooks/lago",
                "signature_algo": "hmac",
                "name": "gateway",
            }
        )
        # The publisher outlives the gateway, so that what the last requests were charged is counted too.
        no_more = asyncio.Event()
        controlling = asyncio.create_task(run_loops(publisher, billing, no_more))
        told = asyncio.create_task(stop.wait())
        try:
            await _loaded(store, accounts, controlling)
            tell(
                Running(
                    proxy=f"http://127.0.0.1:{port}",
                    admin=f"http://127.0.0.1:{ports.admin}",
                    lago=lago_url,
                    openmeter=openmeter_url,
                    upstream=upstream_url,
                    valkey=valkey or f"valkey+unix://{directory}/valkey/valkey.sock",
                    accounts=accounts,
                    lago_api_key=api_key,
                    webhook_hmac_key=hmac_key,
                )
            )
            await asyncio.wait({told, controlling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            clean = await plane.stop()
            no_more.set()
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


def _print_json(running: Running) -> None:
    typer.echo(orjson.dumps(running.document()).decode())
    sys.stdout.flush()


def _print_guide(running: Running) -> None:
    key = running.accounts[0].api_key
    path = "/open-banking/v3.1/aisp/accounts"
    console().print("\n[bold]quota-sidecar demo[/bold]\n")
    places = (("gateway", running.proxy), ("admin", running.admin), ("OpenMeter", running.openmeter))
    for what, url in (*places, ("Lago", running.lago)):
        print(f"  {what:13} {url}")
    console().print()
    for account in running.accounts:
        print(f"  {account.id:13} X-API-Key: {account.api_key}")
        console().print(f"  {'':13} [dim]{account.about}[/dim]", soft_wrap=True)
    console().print("\nIn another shell:\n")
    commands = (
        ("one call", f"curl -i -H 'X-API-Key: {key}' {running.proxy}{path}"),
        (
            "use up the credit",
            f"for i in $(seq 11); do curl -s -o /dev/null -w '%{{http_code}} %header{{x-credits-remaining}}\\n' "
            f"-H 'X-API-Key: {key}' {running.proxy}{path}; done",
        ),
        ("what is missing", f"curl -s -H 'X-API-Key: {key}' {running.proxy}{path}"),
        ("what OpenMeter counted", f"curl -s '{running.openmeter}/api/v1/meters/api_calls/query?groupBy=subject'"),
        (
            "top the wallet up in Lago: the next call passes",
            f"W=$(curl -s -H 'Authorization: Bearer {running.lago_api_key}' "
            f"'{running.lago}/api/v1/wallets?external_customer_id=tpp-prepaid' "
            '| sed \'s/.*"lago_id":"\\([^"]*\\)".*/\\1/\'); '
            f"curl -s -H 'Authorization: Bearer {running.lago_api_key}' -H 'Content-Type: application/json' "
            '-d "{"wallet_transaction":{"wallet_id":"$W","granted_credits":"5.0"}}" '
            f"{running.lago}/api/v1/wallet_transactions",
        ),
        ("the account", f"curl -s {running.admin}/v1/accounts/tpp-prepaid"),
    )
    for what, command in commands:
        console().print(f"  [dim]# {what}[/dim]")
        print(f"  {command}")
    errors().print("\nCtrl-C ends it.\n")
