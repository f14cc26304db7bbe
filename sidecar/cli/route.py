"""``sidecar route``: which route a request takes, what it costs, and why no other route takes it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from sidecar.app import assemble
from sidecar.app.configuration import Config, load_config
from sidecar.cli.output import ConfigOption, JsonOption, console, fail, print_json
from sidecar.cli.words import count, price_text
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead
from sidecar.gateway.http1.target import routing_path
from sidecar.gateway.methods import METHOD_OVERRIDES, PATH_OVERRIDES, PREFLIGHT
from sidecar.gateway.routes import SAFE_METHODS, Reading, Route, RouteTable, is_charged
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.accounts_file import load_accounts

ACCOUNTS_SHOWN_MAX: Final = 20
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:.*")


@dataclass(frozen=True, slots=True)
class OtherRoute:
    """A route that does not decide, and why."""

    setting: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One reading of the path; ``charged``: this one decides."""

    how: str
    path: str
    setting: str
    cost: str
    charged: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the command prints. ``refused``: the status of the gateway's own answer, 0 if the request passes."""

    method: str
    path: str
    refused: int
    reason: str
    route: str = ""
    setting: str = ""
    metric: str = ""
    units: int = 0
    free: bool = False
    allow: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    others: tuple[OtherRoute, ...] = ()


def register(app: typer.Typer) -> None:
    app.command()(route)


def route(
    method: Annotated[str, typer.Argument(help="Method, in upper case.", show_default=False)],
    path: Annotated[str, typer.Argument(help="Path as a client sends it; a query is ignored.", show_default=False)],
    config: ConfigOption = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", "-H", metavar="FIELD", help="Header field, as 'Name: value'. Repeat it for several.",
            show_default=False,
        ),
    ] = None,
    accounts: Annotated[
        Path | None,
        typer.Option("--accounts", help="Accounts file (YAML) with prices and rate limits.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Show which route a request takes and what it costs.

    This prints the route, its metric, units and statuses, what servers could take the path for, and why the other
    routes do not decide. It connects to nothing. It exits with 1 if the gateway would refuse the request.

    Example: [bold]sidecar route GET /accounts/1/transactions -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    specs = load_accounts(accounts) if accounts is not None else ()
    explanation = explain(loaded, method, path, _fields(header or ()), specs)
    if json:
        print_json(explanation)
    else:
        _print(explanation)
    raise typer.Exit(1 if explanation.refused else 0)


def _fields(given: Sequence[str]) -> list[str]:
    for line in given:
        if not _FIELD.fullmatch(line) or _CONTROL.search(line):
            fail(f"--header {line!r}: should be 'Name: value'", 2)
    return list(given)


def explain(
    config: Config, method: str, path: str, fields: Sequence[str] = (), accounts: Sequence[AccountSpec] = ()
) -> Explanation:
    """What the gateway makes of a request without a body."""
    if not path.startswith(("/", "*", "http://", "https://")) or _CONTROL.search(path):
        fail(f"PATH {path!r}: should begin with /", 2)
    if not method or re.search(r"[\s\x00-\x1f]", method):
        fail(f"METHOD {method!r}: should be a method such as GET", 2)
    table = assemble.route_table(config)
    try:
        head = _head(config, method, path, fields)
        readings = table.readings(head.method, head.path)
    except ProtocolError as error:
        return Explanation(method, path, error.status, error.reason)
    try:
        found = table.find_for(head)
    except ProtocolError as error:
        return Explanation(
            method, path, error.status, error.reason, variants=_variants(table, _settings(config, table), readings, -1)
        )
    canonical = routing_path(head.path, encoded_slash=True).decode("latin-1")
    base = Explanation(method, canonical, 0, "", limits=tuple(_limits(config)))
    settings = _settings(config, table)
    decided = _of_table(table, found)
    base = replace(
        base,
        route=found.name,
        setting=settings[decided],
        free=found.free,
        variants=_variants(table, settings, readings, decided),
        others=tuple(_others(table, settings, head, canonical, readings, decided)),
    )  # fmt: skip
    if found.deny:
        status = 405 if found.allow else 404
        reason = f"the path has other methods: {', '.join(found.allow)}" if found.allow else "no route takes the path"
        return replace(base, refused=status, reason=reason, allow=found.allow)
    if found.free:
        return base
    return replace(
        base, metric=found.metric, units=found.units, prices=tuple(_prices(found, accounts)),
        statuses=_ranges(_charged(found, head.method)), rules=tuple(_rules(found, head.method)),
    )  # fmt: skip


def _head(config: Config, method: str, path: str, fields: Sequence[str]) -> RequestHead:
    """The request as the gateway's parser reads it.

    Raises:
        ProtocolError: it is refused.
    """
    limits = assemble.proxy_settings(config).limits
    host = urlsplit(path).netloc if path.startswith("http") else "api"
    lines = [f"{method} {path} HTTP/1.1", *fields]
    if not any(line.lower().startswith("host:") for line in fields):
        lines.append(f"Host: {host}")
    read = HeadParser({*METHOD_OVERRIDES, *PREFLIGHT}, PATH_OVERRIDES, limits, marks=METHOD_OVERRIDES).request(
        "\r\n".join([*lines, "", ""]).encode()
    )
    if read is None:
        raise ProtocolError(400, "The request line is malformed.")
    return read[0]


def _settings(config: Config, table: RouteTable) -> list[str]:
    """Where each route of the table stands in the configuration."""
    free = [f"free_paths[{index}]" for index in range(len(config.free_paths))]
    return [*free, *(f"routes[{index}]" for index in range(len(table.routes) - len(free) - 1)), "default_route"]


def _variants(
    table: RouteTable, settings: Sequence[str], readings: Sequence[Reading], decided: int
) -> tuple[Variant, ...]:
    found: list[Variant] = []
    for each in readings:
        index = _of_table(table, each.route)
        charged = index == decided and not any(earlier.charged for earlier in found)
        found.append(Variant(each.how, each.path, settings[index], _cost(each.route), charged))
    return tuple({(each.path, each.setting): each for each in found[::-1]}.values())[::-1]


def _of_table(table: RouteTable, found: Route) -> int:
    """Its index. A denial or a free preflight is made from a route of the table, and is not one itself."""
    for index, each in enumerate(table.routes):
        if each is found:
            return index
    for index, each in enumerate(table.routes):
        if each.template == found.template and each.methods == found.methods:
            return index
    return len(table.routes) - 1


def _cost(route: Route) -> str:
    return "denied" if route.deny else "free" if route.free else f"{route.units} {route.metric}"


def _prices(route: Route, accounts: Sequence[AccountSpec]) -> Iterator[str]:
    if not accounts:
        yield f"{count(route.units, 'unit')} of {route.metric}, at the price of the account's plan"
        return
    for spec in accounts[:ACCOUNTS_SHOWN_MAX]:
        price = spec.prices.get(route.metric)
        rate = spec.limits
        limits = [f"{rate.per_second} a second"] if rate.per_second else []
        limits += [f"{rate.per_day} a day"] if rate.per_day else []
        what = f"{route.units} x {price_text(price, spec.currency)}" if price is not None else "no price: 403"
        yield f"{spec.id}: {what}" + (f", at most {' and '.join(limits)}" if limits else "")
    if len(accounts) > ACCOUNTS_SHOWN_MAX:
        yield f"… and {count(len(accounts) - ACCOUNTS_SHOWN_MAX, 'account')} more"


def _ranges(statuses: frozenset[int]) -> tuple[str, ...]:
    found: list[list[int]] = []
    for status in sorted(statuses):
        if found and found[-1][1] == status - 1:
            found[-1][1] = status
        else:
            found.append([status, status])
    return tuple(f"{low}" if low == high else f"{low}-{high}" for low, high in found)


def _charged(route: Route, method: bytes) -> frozenset[int]:
    return frozenset(status for status in range(100, 600) if is_charged(route, method, status))


def _rules(route: Route, method: bytes) -> Iterator[str]:
    """What decides about calls without a whole answer, bodies and repeats."""
    unsafe = method not in SAFE_METHODS
    if unsafe:
        yield f"no answer in time: {'charged' if route.timeout_charged else 'free'}"
    broken = {None: "charged if it was a stream", True: "charged", False: "free"}[route.broken_charged]
    yield f"an answer that the API breaks off: {broken}"
    if unsafe:
        yield f"bodies: {'gathered first' if route.buffered else 'go on as they come'}"
        rule = route.idempotency
        repeats = "charged"
        if rule is not None:
            conflicts = "refused" if rule.refuse_conflicts else "charged"
            repeats = f"{rule.repeats_max} free under {rule.header.decode()}, conflicts {conflicts}"
        yield f"repeats: {repeats}"


def _limits(config: Config) -> Iterator[str]:
    limits = config.limits
    yield f"limits.target_bytes_max: {limits.target_bytes_max}"
    yield f"limits.head_bytes_max: {limits.head_bytes_max}"
    yield f"limits.body_bytes_max: {'none' if limits.body_bytes_max is None else limits.body_bytes_max}"
    yield f"limits.body_timeout_ms: {limits.body_timeout_ms}"
    yield f"upstream.response_timeout_ms: {config.upstream.response_timeout_ms}"


def _others(
    table: RouteTable, settings: Sequence[str], head: RequestHead, path: str, readings: Sequence[Reading], decided: int
) -> Iterator[OtherRoute]:
    first = _of_table(table, readings[0].route)
    read = {_of_table(table, reading.route): reading.how for reading in readings[::-1]}
    for index, each in enumerate(table.routes):
        if index == decided:
            continue
        if index == first:
            why = f"matches the path as spelled, but {settings[decided]} decides"
        elif index in read:
            why = f"matches in another reading ({read[index]}), but {settings[decided]} decides"
        elif each.template is None:
            why = "a route matches"
        else:
            why = _mismatch(each, head.method, path) or f"{settings[first]} matches first"
        yield OtherRoute(settings[index], each.name, why)


def _mismatch(route: Route, method: str | bytes, path: str) -> str:
    """Why a route does not match as spelled; empty if it does."""
    template = route.template
    assert template is not None
    parts = path[1:].split("/")
    for number, (want, part) in enumerate(zip(template.segments, parts, strict=False), start=1):
        if want is None and not part:
            return f"segment {number} of the path is empty"
        if want is not None and want != part:
            return f"segment {number} is {want or 'empty'}, the path has {part or 'an empty one'}"
    if len(parts) < len(template.segments) or (len(parts) > len(template.segments) and not template.rest):
        least = " or more" if template.rest else ""
        return f"has {count(len(template.segments), 'segment')}{least}, the path has {len(parts)}"
    if route.methods is not None and method not in route.methods:
        return f"is for {', '.join(sorted(each.decode() for each in route.methods))}"
    return ""


def _print(explanation: Explanation) -> None:
    def line(label: str, text: str) -> None:
        console().print(f"{label:<10} {text}", soft_wrap=True, markup=False)

    line("request", f"{explanation.method} {explanation.path}")
    if explanation.refused:
        line("refused", f"{explanation.refused}: {explanation.reason}")
    if not explanation.refused:
        line("route", f"{explanation.route} ({explanation.setting})")
        if explanation.free:
            line("price", "free: no identity, no charge")
        else:
            line("metric", explanation.metric)
            line("units", str(explanation.units))
            _lines("price", explanation.prices)
            line("statuses", ", ".join(explanation.statuses))
            _lines("rules", explanation.rules)
        _lines("limits", explanation.limits)
    _lines(
        "variants",
        [
            f"{each.how}: {each.path} -> {each.setting}, {each.cost}{' (decides)' if each.charged else ''}"
            for each in explanation.variants
        ],
    )
    _lines("others", [f"{each.setting} {each.name}: {each.why}" for each in explanation.others])


def _lines(label: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        console().print(f"{'' if number else label:<10} {text}", soft_wrap=True, markup=False)
