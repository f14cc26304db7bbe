"""``sidecar run`` and ``sidecar control``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import orjson
import typer

from sidecar.app import logs
from sidecar.app.configuration import Config, load_config
from sidecar.app.serve import Ports, Ready, run_data_plane
from sidecar.app.signals import stop_event
from sidecar.app.worker_environment import stop_with_parent, worker_place
from sidecar.cli.output import ConfigOption, run_async

ReadyJson = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON with the addresses when the process is ready.")
]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(control)


def run(config: ConfigOption = None, json: ReadyJson = False) -> None:
    """Run the gateway (data plane). It identifies callers, debits credits, and passes requests on to the API.

    SIGTERM drains the gateway. Its readiness fails, requests under way end, their holds settle, and the process exits
    with 0. SIGUSR1 drains the gateway too, but the process stays until SIGTERM (see sidecar drain).

    Example: [bold]sidecar run -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ, command="run")
    logs.configure(loaded.log.level, loaded.log.format, waits=False)
    sys.exit(0 if run_async(_run(loaded, json)) else 1)


def control(config: ConfigOption = None, json: ReadyJson = False) -> None:
    """Run the control plane. It delivers usage events and keeps accounts as Lago has them.

    It sends usage events to OpenMeter, loads accounts from Lago, receives webhooks from Lago, pushes usage to Lago, and
    gives back the holds of gateways that died. Several control planes may run at once. All of them publish events and
    receive webhooks. One of them leads the other work. If it dies, another one leads.

    Example: [bold]sidecar control -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ, command="control")
    logs.configure(loaded.log.level, loaded.log.format, waits=False)
    sys.exit(0 if run_async(_control(loaded, json)) else 1)


async def _run(config: Config, json: bool) -> bool:
    stop = stop_event()
    place = worker_place(os.environ)
    if place is not None:
        _, port, socket = place
        stop_with_parent(stop)
        return await run_data_plane(config, stop, lambda *_: None, port=port, admin_socket=socket)
    ready = _printer(config, json)
    if config.listen.workers > 1:
        from sidecar.app.workers import Supervisor  # as below: one process does without

        return await Supervisor(config, sys.argv[1:]).run(stop, ready)
    return await run_data_plane(config, stop, ready)


async def _control(config: Config, json: bool) -> bool:
    # A gateway does without what this brings in.
    from sidecar.app.control_plane import run_control_plane

    return await run_control_plane(config, stop_event(), _printer(config, json))


def _printer(config: Config, json: bool) -> Ready:
    def ready(ports: Ports) -> None:
        scheme = "https" if config.listen.tls else "http"
        urls = {
            "proxy": f"{scheme}://{_shown(config.listen.host)}:{ports.proxy}" if ports.proxy else None,
            "admin": f"http://{_shown(config.admin.host)}:{ports.admin}",
        }
        if ports.health:
            urls["health"] = f"http://{_shown(config.health.host)}:{ports.health}"
        for number, port in enumerate(ports.further, start=2):
            urls[f"proxy {number}"] = f"{scheme}://{_shown(config.listen.host)}:{port}"
        if json:
            typer.echo(orjson.dumps(urls).decode())
            sys.stdout.flush()
        elif sys.stderr.isatty():
            typer.echo(
                "  ".join(f"{name} {typer.style(url, bold=True)}" for name, url in urls.items() if url), err=True
            )

    return ready


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104  # shown as an address that can be called
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
