"""``sidecar verify-billing``: options in, table and exit code out."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import SecretStr, TypeAdapter, ValidationError

from sidecar.app import logs
from sidecar.app.configuration import Config
from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoSetupError
from sidecar.cli.output import JsonOption, between, errors, fail, run_async
from sidecar.cli.verify_billing import report
from sidecar.cli.verify_billing.cleaning import Cleaned, clean, clean_ledger
from sidecar.cli.verify_billing.names import BadPrefix, Names, new_prefix
from sidecar.cli.verify_billing.options import Options, Secrets
from sidecar.cli.verify_billing.own_lago import OwnLago
from sidecar.cli.verify_billing.rig import open_rig, small_api
from sidecar.cli.verify_billing.scenario import Row
from sidecar.cli.verify_billing.scenarios import SCENARIOS
from sidecar.cli.verify_billing.stand_ins import stand_ins
from sidecar.cli.verify_billing.trial import try_scenarios
from sidecar.config.errors import ConfigError
from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.settings import BaseUrl
from sidecar.sandbox.server import Server
from sidecar.valkey.topology import connected
from sidecar.valkey.url import Embedded, ValkeyUrlError, parse_valkey_url

LAGO_KEY: Final = "SIDECAR_LAGO__API_KEY"
OPENMETER_TOKEN: Final = "SIDECAR_METERING__TOKEN"  # noqa: S105 - the name of a variable
_OPTIONS: Final = {
    "valkey": "--valkey",
    "lago.url": "--lago",
    "lago.api_key": LAGO_KEY,
    "lago.api_key_file": "--lago-key-file",
    "lago.ca_file": "--ca-file",
    "lago.webhooks.hmac_key_file": "--webhook-hmac-key-file",
    "metering.url": "--openmeter",
    "metering.token": OPENMETER_TOKEN,
    "metering.token_file": "--openmeter-token-file",
    "metering.ca_file": "--ca-file",
}
"""Settings, and the options that they come from."""


def register(app: typer.Typer) -> None:
    app.command(name="verify-billing")(verify_billing)


def verify_billing(
    lago: Annotated[str | None, typer.Option(metavar="URL", help="Lago's API.", show_default=False)] = None,
    openmeter: Annotated[str | None, typer.Option(metavar="URL", help="OpenMeter's API.", show_default=False)] = None,
    lago_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the API key of Lago. The variable {LAGO_KEY} can have it instead.",
            show_default=False,
        ),
    ] = None,
    openmeter_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the token of OpenMeter, if it needs one. Or {OPENMETER_TOKEN}.",
            show_default=False,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file with the authorities for https URLs.", show_default=False),
    ] = None,
    valkey: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Valkey, instead of an embedded one. Only keys with the prefix are used.",
            show_default=False,
        ),
    ] = None,
    webhook_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where Lago reaches this machine, such as http://lab:9099/webhooks/lago. The command listens on "
            "that port. Without it there are no webhooks: changes in Lago are seen by sweeps.",
            show_default=False,
        ),
    ] = None,
    webhook_hmac_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with Lago's HMAC key. Without it Lago signs webhooks as JWT.", show_default=False
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="First part of all names: verify- and letters or digits. By default a new one.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            callback=between(1, 3_600),
            metavar="SECONDS",
            help="How long a scenario waits for something to become true.",
        ),
    ] = 60.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCENARIO",
            help="Only this scenario, such as 'top-up'. It can be given several times.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not clean up.")] = False,
    clean_prefix: Annotated[
        str | None,
        typer.Option(
            "--clean", metavar="PREFIX", help="Only clean up what a run with this prefix has left.", show_default=False
        ),
    ] = None,
    with_stand_ins: Annotated[
        bool, typer.Option("--stand-ins", help="Start stand-ins of Lago and OpenMeter, and run against them.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log lines of the gateway.")] = False,
    json: JsonOption = False,
) -> None:
    """Try the whole system against a Lago and an OpenMeter, and compare their books with the ledger.

    The command makes customers, plans, wallets and a meter of its own, starts a gateway and a control plane, makes
    calls, compares, prints one table, and takes away what it has made. Scenarios that need a moved clock, a premium
    licence or webhooks are skipped where there is none. It exits with 1 if something differs.

    Example: [bold]sidecar verify-billing --lago http://lago:3000 --openmeter http://openmeter:8888 --lago-key-file
    key[/bold]
    """
    logs.configure("warning" if verbose else "critical", "console")
    if with_stand_ins and (lago or openmeter or clean_prefix):
        fail("--stand-ins goes without --lago, --openmeter and --clean", 2)
    files = {
        "--lago-key-file": lago_key_file, "--openmeter-token-file": openmeter_token_file, "--ca-file": ca_file,
        "--webhook-hmac-key-file": webhook_hmac_key_file,
    }  # fmt: skip
    for option, file in files.items():
        _check_file(option, file)
    options = Options(
        lago="" if with_stand_ins else _url("--lago", lago),
        openmeter="" if with_stand_ins else _url("--openmeter", openmeter),
        names=_names(clean_prefix, prefix),
        secrets=Secrets(
            _variable(LAGO_KEY) if lago_key_file is None else None,
            lago_key_file,
            _variable(OPENMETER_TOKEN) if openmeter_token_file is None else None,
            openmeter_token_file,
            webhook_hmac_key_file,
        ),
        valkey=_valkey(valkey),
        webhook_url=_url("--webhook-url", webhook_url) if webhook_url is not None else None,
        ca_file=ca_file,
        timeout_s=timeout,
        keep=keep,
        only=_only(only or []),
    )
    if not with_stand_ins and lago_key_file is None and options.secrets.lago_key is None:
        fail(f"Lago needs an API key: give --lago-key-file FILE, or set {LAGO_KEY}", 2)
    if clean_prefix is not None:
        cleaned = run_async(_clean(options))
        report.show_cleaned(options.names.prefix, cleaned)
        raise typer.Exit(1 if cleaned.left else 0)
    outcome = run_async(_with_stand_ins(options) if with_stand_ins else _verify(options))
    if json:
        report.show_json(options.names.prefix, outcome.rows, outcome.cleaned)
    else:
        report.show_table(outcome.rows)
    is_clean = outcome.cleaned is None or not outcome.cleaned.left
    sys.exit(0 if report.passes(outcome.rows) and is_clean else 1)


@dataclass(slots=True)
class Outcome:
    """``cleaned``: None if it was not asked for."""

    rows: list[Row]
    cleaned: Cleaned | None = None


@dataclass(frozen=True, slots=True)
class Services:
    config: Config
    lago: OwnLago
    query: MeterQuery


async def _with_stand_ins(options: Options) -> Outcome:
    async with stand_ins(options) as complete:
        return await _verify(complete)


async def _verify(options: Options) -> Outcome:
    outcome = Outcome([])
    async with _services(options) as services:
        if await services.lago.metric(options.names.metric) is not None:
            raise SetupError(
                f"there is a run with the prefix {options.names.prefix} in Lago; if it has ended, give --clean"
                f" {options.names.prefix}"
            )
        errors().print(f"prefix: {options.names.prefix}")
        try:
            async with open_rig(options, services.config, services.lago, services.query) as rig:
                scenarios = [each() for each in SCENARIOS if not options.only or each.name in options.only]
                outcome.rows += await try_scenarios(rig, scenarios, report.show_progress)
        finally:
            if options.keep:
                errors().print(f"kept: sidecar verify-billing --clean {options.names.prefix} … takes it away")
            else:
                outcome.cleaned = await _clean_with(options, services)
                report.show_cleaned(options.names.prefix, outcome.cleaned)
    return outcome


async def _clean(options: Options) -> Cleaned:
    async with _services(options) as services:
        return await _clean_with(options, services)


async def _clean_with(options: Options, services: Services) -> Cleaned:
    cleaned = await clean(options.names, services.lago, services.query)
    if not isinstance(services.config.valkey, Embedded):
        async with connected(services.config.valkey) as client:
            await clean_ledger(options.names, client, cleaned)
    return cleaned


@contextlib.asynccontextmanager
async def _services(options: Options) -> AsyncIterator[Services]:
    """Clients of Lago and OpenMeter that are known to be let in, as Valkey is. Raises as they do."""
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-verify-"))
        upstream = await stack.enter_async_context(Server(small_api()))
        config = _config(options, directory, upstream.url)
        try:
            lago = await stack.enter_async_context(OwnLago(config.lago, options.names))
            query = await stack.enter_async_context(MeterQuery(config.metering))
        except (LagoSetupError, MeteringError) as error:
            setting, _, reason = str(error).partition(": ")
            fail(f"{_OPTIONS.get(setting, setting)}: {reason}", 2)
        if not isinstance(config.valkey, Embedded):
            async with connected(config.valkey) as client:
                await client.ping()
        await lago.taxes()
        await query.meters()
        yield Services(config, lago, query)


def _config(options: Options, directory: str, upstream: str) -> Config:
    try:
        return options.config(directory, upstream)
    except ConfigError as error:
        texts = [f"{_OPTIONS.get(problem.path, problem.path)}: {problem.message}" for problem in error.problems]
        fail("; ".join(texts), 2)


def _names(clean_prefix: str | None, prefix: str | None) -> Names:
    try:
        return Names(clean_prefix or prefix or new_prefix())
    except BadPrefix as error:
        fail(f"{'--clean' if clean_prefix else '--prefix'}: {error}", 2)


def _url(option: str, url: str | None) -> str:
    if url is None:
        fail(f"{option} URL is missing", 2)
    try:
        checked: str = TypeAdapter(BaseUrl).validate_python(url)
    except ValidationError as error:
        fail(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", 2)
    return checked


def _valkey(url: str | None) -> str | None:
    if url is not None:
        try:
            parse_valkey_url(url)
        except ValkeyUrlError as error:
            fail(f"--valkey: {error}", 2)
    return url


def _only(names: list[str]) -> tuple[str, ...]:
    known = [each.name for each in SCENARIOS]
    for name in names:
        if name not in known:
            fail(f"--only: there is no scenario {name!r}; there are: {', '.join(known)}", 2)
    return tuple(names)


def _check_file(option: str, file: Path | None) -> None:
    if file is None:
        return
    try:
        with file.open("rb"):
            return
    except OSError as error:
        fail(f"{option}: {file}: {reason_of(error)}", 2)


def _variable(name: str) -> SecretStr | None:
    value = os.environ.get(name)
    return SecretStr(value) if value else None
