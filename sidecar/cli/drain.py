"""``sidecar drain``: tell a gateway on this machine that its clients should go elsewhere."""

from __future__ import annotations

import http.client
import json as json_reader
import math
import os
import signal
import time
from typing import Annotated, Any

import typer

from sidecar.app.configuration import Config, load_config
from sidecar.app.settings import is_loopback
from sidecar.basics.fault_reasons import reason_of
from sidecar.cli.output import ConfigOption, between, fail

ASK_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 65_536


class NotThere(Exception):
    """No gateway answers."""


def register(app: typer.Typer) -> None:
    app.command()(drain)


def drain(
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option(help="Wait until no request is under way and all holds have settled.")] = True,
    timeout: Annotated[
        float | None,
        typer.Option(
            callback=between(0, math.inf),
            metavar="SECONDS",
            help="How long to wait. The default is the time that the configuration gives a drain.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Drain the gateway that runs on this machine with this configuration.

    The gateway's readiness fails at once, so that load balancers send no new clients. For limits.drain_delay_ms it
    still serves clients that come, and closes each connection after the answer. Then it accepts no connection. The
    process stays until SIGTERM. The command is made for a container's preStop hook.

    Example: [bold]sidecar drain -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    limits = loaded.limits
    limit_s = timeout if timeout is not None else (limits.drain_delay_ms + limits.drain_timeout_ms) / 1000 + 10
    try:
        process = _process(loaded)
        if "draining" not in process:
            fail("the process at the configured admin address is not a gateway", 1)
        pid = process["pid"]
        os.kill(pid, signal.SIGUSR1)
    except NotThere as error:
        fail(str(error), 1)
    except ProcessLookupError:
        fail("the gateway runs on another machine, or in another container", 1)
    if not wait:
        typer.echo(f"The gateway (process {pid}) is draining.")
        return
    ends = time.monotonic() + limit_s
    while True:
        try:
            if _process(loaded)["drained"]:
                typer.echo(f"The gateway (process {pid}) has drained. It accepts no connections, and ends on SIGTERM.")
                return
        except NotThere:  # it has ended meanwhile, which it does only when it has drained
            typer.echo(f"The gateway (process {pid}) has drained and ended.")
            return
        if time.monotonic() > ends:
            fail(f"the gateway has not drained within {limit_s:g} s", 1)
        time.sleep(0.1)


def _process(config: Config) -> dict[str, Any]:
    admin = config.admin
    host = admin.host if is_loopback(admin.host) else "127.0.0.1"
    connection = http.client.HTTPConnection(host, admin.listening_port, timeout=ASK_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {admin.token.get_secret_value()}"} if admin.token else {}
    where = f"http://{host}:{admin.listening_port}/v1/process"
    try:
        connection.request("GET", "/v1/process", headers=headers)
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise NotThere(f"no gateway answers at {where}: {reason_of(error)}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise NotThere(f"{where} answered {response.status}")
    try:
        document = json_reader.loads(body)
    except ValueError:
        document = None
    # A number below 1 would be a group of processes.
    if not isinstance(document, dict) or not isinstance(document.get("pid"), int) or document["pid"] < 1:
        raise NotThere(f"the process at {where} is not a gateway: it sent another document")
    return document
