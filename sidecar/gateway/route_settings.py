"""Sections ``routes`` and ``default_route``: what a request costs, by its path and method."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from sidecar.config.fields import Model, Whole, conflict
from sidecar.config.path_template import Template, parse_template
from sidecar.gateway.methods import METHODS, USUAL_METHODS

ROUTES_MAX: Final = 1_000

_STATUSES = re.compile(r"([1-5])xx|([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?", re.IGNORECASE)
METRIC = r"^[a-z0-9]+(?:_[a-z0-9]+)*$"  # OpenMeter's rule for a slug (facts: at most 64 characters)

CHARGED: Final = ("100-499",)
"""The API did work for every status below 500 (499: the client went away), and did not keep its part above."""


def _path(path: str) -> str:
    parse_template(path)
    return path


def _methods(methods: Any) -> Any:
    if methods == "any":
        return ()
    if isinstance(methods, str | list | tuple):
        return tuple(
            m.upper() if isinstance(m, str) else m for m in ([methods] if isinstance(methods, str) else methods)
        )
    return methods


def _registered(methods: tuple[str, ...]) -> tuple[str, ...]:
    for method in methods:
        if method not in METHODS:
            near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"usual ones are {', '.join(METHODS[:USUAL_METHODS])}"
            raise ValueError(f"{method!r} is not a registered method; {hint}")
    if len(set(methods)) != len(methods):
        raise ValueError("names a method twice")
    return methods


def statuses_of(entries: Sequence[str]) -> frozenset[int]:
    """The statuses that ``["2xx", "404", "200-499"]`` stands for.

    Raises:
        ValueError: an entry is none of these.
    """
    found: set[int] = set()
    for entry in entries:
        match = _STATUSES.fullmatch(entry)
        if match is None:
            raise ValueError(
                f'{entry!r} is neither a status like "404" nor a range like "200-499" nor a class like "2xx"'
            )
        low = int(match[1]) * 100 if match[1] else int(match[2])
        high = low + 99 if match[1] else int(match[3] or low)
        if high < low:
            raise ValueError(f"{entry!r} ends before it begins")
        found.update(range(low, high + 1))
    return frozenset(found)


def _status_texts(entries: Any) -> Any:
    if isinstance(entries, list | tuple):
        return tuple(str(e) if isinstance(e, int) and not isinstance(e, bool) else e for e in entries)
    return entries


def _statuses(entries: tuple[str, ...]) -> tuple[str, ...]:
    statuses_of(entries)
    return entries


class DefaultRouteSettings(Model):
    """What a request costs."""

    metric: str = Field(
        default="api_calls",
        pattern=METRIC,
        max_length=64,
        description="Billable metric in Lago, and meter in OpenMeter, that requests count for.",
    )
    units: Annotated[Whole, Field(ge=1, le=1_000_000_000)] = Field(
        default=1, description="Units that one request uses."
    )
    free: bool = Field(default=False, description="Requests pass without a hold, a charge and a usage event.")
    charge_statuses: Annotated[tuple[str, ...], BeforeValidator(_status_texts), AfterValidator(_statuses)] = Field(
        default=CHARGED,
        min_length=1,
        max_length=64,
        description='Statuses of answers that are charged: `"2xx"`, `"404"`, `"200-499"`. Other statuses release the '
        "hold. The status of the API counts, even if the client went away meanwhile (its event then says "
        "499).",
    )
    idempotency: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether retries with one `x-idempotency-key` or `Idempotency-Key` are charged once. `auto`: for "
        "POST, PUT and PATCH.",
    )
    encoded_slash: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="Paths with `%2F`. `allow`: for an API that keeps it as data; such a path costs the dearer of both "
        "readings, `%2F` kept and decoded.",
    )
    cors: Literal["off", "pass"] = Field(
        default="off",
        description="CORS preflights for the route's methods. `pass`: they pass without identity and charge. `off`: "
        "they cost what any other OPTIONS request costs.",
    )
    method_override: Literal["refuse", "price"] = Field(
        default="refuse",
        description="`X-HTTP-Method-Override`, `X-Method-Override` and `X-HTTP-Method` that name another method. "
        "`refuse`: 400. `price`: such a request costs the dearer of both methods.",
    )

    @model_validator(mode="after")
    def _free_is_free(self) -> DefaultRouteSettings:
        priced = sorted(self.model_fields_set & {"metric", "units", "charge_statuses", "idempotency"})
        if self.free and priced:
            raise conflict([(name, "has no effect on a free route") for name in priced])
        return self

    @property
    def charged_statuses(self) -> frozenset[int]:
        """The statuses that are charged."""
        return frozenset() if self.free else statuses_of(self.charge_statuses)


RoutePath = Annotated[str, AfterValidator(_path)]


class _RouteMatch(Model):
    path: RoutePath = Field(
        description="Path with parameters in braces; a final `/**` takes everything below too. It is also the name "
        "that events and metrics carry, so that account numbers never get there."
    )
    methods: Annotated[tuple[str, ...], BeforeValidator(_methods), AfterValidator(_registered)] = Field(
        default=(), max_length=32, description="Methods of the route. `any`, or an empty list: all methods."
    )


class RouteSettings(DefaultRouteSettings, _RouteMatch):
    """What requests for one path cost."""

    @property
    def template(self) -> Template:
        """The path, parsed."""
        return parse_template(self.path)


def _kind(value: Any) -> str:
    return "deny" if isinstance(value, str) else "route"


DefaultRoute = Annotated[
    Annotated[DefaultRouteSettings, Tag("route")] | Annotated[Literal["deny"], Tag("deny")], Discriminator(_kind)
]


def _extension(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    bare = text.removeprefix(".").lower()
    if not re.fullmatch(r"[a-z0-9_-]{1,32}(\.[a-z0-9_-]{1,32})?", bare):
        raise ValueError(f"{text!r} is no extension like json")
    return bare


def _reachable(routes: tuple[RouteSettings, ...]) -> tuple[RouteSettings, ...]:
    problems: list[tuple[str, str]] = []
    before: list[tuple[Template, frozenset[str]]] = []
    for index, route in enumerate(routes):
        template, methods = route.template, frozenset(route.methods)
        for earlier, (wider, served) in enumerate(before):
            if wider.covers(template) and (not served or (methods and methods <= served)):
                first = f"routes[{earlier}] ({routes[earlier].path})"
                same = f"is the same as {first}" if wider == template else f"is never used: {first} matches first"
                problems.append((f"{index}.path", same))
                break
        before.append((template, methods))
    if problems:
        raise conflict(problems)
    return routes


Extension = Annotated[str, BeforeValidator(_extension)]
Routes = Annotated[tuple[RouteSettings, ...], AfterValidator(_reachable)]
