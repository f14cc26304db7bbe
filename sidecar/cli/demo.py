"""``sidecar demo``: the whole system on loopback, with three accounts to try."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from sidecar.cli.output import console, errors, run_async
from sidecar.config.loading import load_config
from sidecar.config.models import Config
from sidecar.config.problems import ConfigError
from sidecar.control import assemble, logs
from sidecar.control.assemble import SetupError
from sidecar.control.dataplane import DataPlane
from sidecar.control.serve import admin_server, key_store, publish_until
from sidecar.control.signals import stop_event
from sidecar.control.store import open_store
from sidecar.metering.publisher import Publisher
from sidecar.sandbox.demo import DemoAccount, demo_accounts, demo_settings
from sidecar.sandbox.openbanking import SampleApi
from sidecar.sandbox.openmeter import OpenMeter
from sidecar.sandbox.server import Server, ServerError


@dataclass(frozen=True, slots=True)
class Running:
    """Where everything listens."""

    proxy: str
    admin: str
    openmeter: str
    upstream: str
    valkey: str
    accounts: tuple[DemoAccount, ...]

    def document(self) -> dict[str, Any]:
        """The line of ``--json``. Lago's part is null until the gateway is connected to one."""
        return {
            "proxy": self.proxy,
            "admin": self.admin,
            "lago": None,
            "openmeter": self.openmeter,
            "upstream": self.upstream,
            "valkey": self.valkey,
            "accounts": [{"id": a.spec.id, "mode": a.spec.mode, "api_key": a.api_key} for a in self.accounts],
            "lago_api_key": None,
            "webhook_hmac_key": None,
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
    """Run the whole system on loopback: gateway, sample Open Banking API, Valkey, OpenMeter stand-in, three accounts.

    Everything is gone when it ends (Ctrl-C), but for what is in a Valkey of your own.

    Example: [bold]sidecar demo --proxy-port 0 --admin-port 0 --json[/bold]
    """
    logs.configure("warning", "console")
    tell = _print_json if json else _print_guide
    try:
        clean = run_async(_demo(proxy_port, admin_port, valkey, period, tell))
    except ServerError as error:
        raise SetupError(str(error)) from None
    sys.exit(0 if clean else 1)


async def _demo(
    proxy_port: int, admin_port: int, valkey: str | None, period_s: int | None, tell: Callable[[Running], None]
) -> bool:
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-demo-")))
        upstream = Server(SampleApi().app())
        upstream_url = await upstream.start()
        stack.push_async_callback(upstream.close)
        openmeter = Server(OpenMeter().app())
        openmeter_url = await openmeter.start()
        stack.push_async_callback(openmeter.close)
        config = _config(
            valkey or f"embedded://{directory}/valkey", upstream_url, openmeter_url, proxy_port, admin_port
        )
        store = await stack.enter_async_context(
            open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync)
        )
        accounts = demo_accounts(period_s)
        for account in accounts:
            await store.accounts.load(account.spec)
        plane = DataPlane(config, store.client, key_store(store))
        port = await plane.start()
        publisher = Publisher(store.client, store.keys, config.metering)
        admin = await stack.enter_async_context(admin_server(config, store, plane, publisher))
        tell(
            Running(
                proxy=f"http://127.0.0.1:{port}",
                admin=f"http://127.0.0.1:{admin}",
                openmeter=openmeter_url,
                upstream=upstream_url,
                valkey=valkey or f"valkey+unix://{directory}/valkey/valkey.sock",
                accounts=accounts,
            )
        )
        # The publisher outlives the gateway, so that what the last requests were charged is counted too.
        no_more = asyncio.Event()
        publishing = asyncio.create_task(publish_until(publisher, no_more))
        told = asyncio.create_task(stop.wait())
        await asyncio.wait({told, publishing}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        clean = await plane.stop()
        no_more.set()
        await publishing
        return clean


def _config(valkey: str, upstream: str, openmeter: str, proxy_port: int, admin_port: int) -> Config:
    settings = demo_settings(valkey, upstream, openmeter, proxy_port, admin_port)
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
    console.print("\n[bold]quota-sidecar demo[/bold]\n")
    for what, url in (("gateway", running.proxy), ("admin", running.admin), ("OpenMeter", running.openmeter)):
        print(f"  {what:13} {url}")
    console.print()
    for account in running.accounts:
        print(f"  {account.spec.id:13} X-API-Key: {account.api_key}")
        console.print(f"  {'':13} [dim]{account.about}[/dim]", soft_wrap=True)
    console.print("\nIn another shell:\n")
    commands = (
        ("one call", f"curl -i -H 'X-API-Key: {key}' {running.proxy}{path}"),
        (
            "use up the credit",
            f"for i in $(seq 11); do curl -s -o /dev/null -w '%{{http_code}} %header{{x-credits-remaining}}\\n' "
            f"-H 'X-API-Key: {key}' {running.proxy}{path}; done",
        ),
        ("what is missing", f"curl -s -H 'X-API-Key: {key}' {running.proxy}{path}"),
        ("what OpenMeter counted", f"curl -s '{running.openmeter}/api/v1/meters/api_calls/query?groupBy=subject'"),
        ("the account", f"curl -s {running.admin}/v1/accounts/tpp-prepaid"),
    )
    for what, command in commands:
        console.print(f"  [dim]# {what}[/dim]")
        print(f"  {command}")
    errors.print("\nCtrl-C ends it.\n")
