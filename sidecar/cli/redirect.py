"""``sidecar redirect``: lead this network namespace's incoming connections to the gateway."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from sidecar.basics.fault_reasons import reason_of
from sidecar.cli.output import between, fail
from sidecar.kubernetes.redirect import (
    CHAIN,
    JUMP,
    Family,
    Redirect,
    RedirectError,
    iptables_rules,
    nft_removal,
    nft_rules,
    parse_ports,
)

TOOL_TIMEOUT_S = 30.0
IPV6 = Path("/proc/net/if_inet6")
_IPTABLES: dict[Family, str] = {"ip": "iptables", "ip6": "ip6tables"}


def register(app: typer.Typer) -> None:
    app.command()(redirect)


def redirect(
    ports: Annotated[str, typer.Option(help="Ports of the application, separated by commas, or * for all.")] = "",
    to: Annotated[int, typer.Option(callback=between(1, 65_535), metavar="PORT", help="Port of the gateway.")] = 15701,
    exclude: Annotated[str, typer.Option(help="With --ports *: ports that are not redirected.")] = "",
    backend: Annotated[
        Literal["auto", "nft", "iptables"], typer.Option(help="With auto, nft if it is installed, else iptables.")
    ] = "auto",
    show: Annotated[bool, typer.Option("--print", help="Print the rules. Change nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the rules.")] = False,
) -> None:
    """Redirect incoming TCP connections of this network namespace (a pod) to the gateway, for IPv4 and IPv6.

    The command needs CAP_NET_ADMIN. Run it once, before the application starts. A second run replaces the rules of the
    first. The gateway must run with upstream.original_destination.

    Example: [bold]sidecar redirect --ports 8080,8081 --to 15701[/bold]
    """
    try:
        wanted = Redirect(parse_ports(ports), to, parse_ports(exclude) or ())
    except RedirectError as error:
        fail(str(error), 2)
    if wanted.ports == () and not remove:
        fail("--ports names no port", 2)
    families: list[Family] = ["ip", "ip6"] if IPV6.exists() else ["ip"]
    tool = backend if backend != "auto" else "nft" if shutil.which("nft") else "iptables"
    if show:
        typer.echo(nft_rules(wanted, families) if tool == "nft" else iptables_rules(wanted), nl=False)
    elif tool == "nft":
        _run(["nft", "-f", "-"], nft_removal(families) if remove else nft_rules(wanted, families))
    else:
        for family in families:
            _iptables(_IPTABLES[family], wanted, remove=remove)


def _iptables(tool: str, wanted: Redirect, *, remove: bool) -> None:
    nat = [tool, "-w", "-t", "nat"]
    jumps = _succeeds([*nat, "-C", *JUMP])
    if not remove:
        _run([f"{tool}-restore", "-w", "--noflush"], iptables_rules(wanted))
        if not jumps:
            _run([*nat, "-A", *JUMP])
        return
    if jumps:
        _run([*nat, "-D", *JUMP])
    if _succeeds([*nat, "-L", CHAIN, "-n"]):
        _run([*nat, "-F", CHAIN])
        _run([*nat, "-X", CHAIN])


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=TOOL_TIMEOUT_S, check=False)  # noqa: S603  # ours
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(command: list[str], text: str = "") -> None:
    try:
        done = subprocess.run(  # noqa: S603  # as above: made here, of numbers that were checked
            command, input=text, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        _failed(command, "is not installed; nftables or iptables is needed")
    except subprocess.TimeoutExpired:
        _failed(command, f"did not end within {TOOL_TIMEOUT_S:g} s")
    except OSError as error:
        _failed(command, reason_of(error))
    if done.returncode != 0:
        said = done.stderr.strip() or f"ended with {done.returncode}"
        hint = " (CAP_NET_ADMIN is needed)" if "permitted" in said or "denied" in said.lower() else ""
        _failed(command, f"{said}{hint}")


def _failed(command: list[str], why: str) -> NoReturn:
    fail(f"{command[0]}: {why}", 1)
