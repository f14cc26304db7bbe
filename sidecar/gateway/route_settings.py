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
from sidecar.gateway.routes import PROVOKED
from sidecar.identity.field_names import check_field_name

ROUTES_MAX: Final = 1_000

_STATUSES = re.compile(r"([1-5])xx|([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?", re.IGNORECASE)
METRIC = r"^[a-z0-9]+(?:_[a-z0-9]+)*$"  # OpenMeter's rule for a slug (facts: at most 64 characters)

CHARGED: Final = ("2xx", "3xx")
"""Success: what a buyer expects to pay for."""
_AS_200: Final = frozenset({101, 206, 304})
"""Statuses of a success that a caller asks for in a field: Upgrade, Range, If-None-Match."""


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


_PRICING: Final = frozenset(
    {"metric", "units", "charge_statuses", "idempotency", "on_response_timeout", "on_broken_answer"}
)


class IdempotencySettings(Model):
    """Free repeats of a charged call: with the same key, method, target and body, and only so many."""

    header: Annotated[str, AfterValidator(check_field_name)] | None = Field(
        default=None,
        description="Field that has the key; others are ignored. null: `x-idempotency-key` with `error_format: obie`, "
        "else `Idempotency-Key`.",
    )
    required: bool = Field(default=False, description="Refuse a call without a key, with 400.")
    repeats_max: Annotated[Whole, Field(ge=0, le=1_000)] = Field(
        default=3, description="Most free repeats of one charged call. Further ones are charged like any call."
    )
    on_conflict: Literal["charge", "refuse"] = Field(
        default="charge",
        description="What becomes of another body under a used key, and of a call whose first one is under way. "
        "`charge`: they go to the API and are charged. `refuse`: 422 and 409, as in "
        "draft-ietf-httpapi-idempotency-key-header.",
    )


def _idempotency(value: Any) -> Any:
    if value in ("off", False):  # unquoted, YAML 1.1 reads the words as truth values
        return None
    if value in ("on", True):
        return IdempotencySettings()
    if value == "auto":
        raise ValueError("auto was removed: write on if the API does a repeated call only once, else off")
    if isinstance(value, str):
        raise ValueError("should be on, off or a section")
    return value


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
        "499). Where 200 is charged, so are 101, 206 and 304, and on methods that change something 406, 412, 416 and "
        "417, which a caller's own fields can provoke after the work was done.",
    )
    idempotency: Annotated[
        IdempotencySettings | None,
        BeforeValidator(_idempotency, json_schema_input_type=IdempotencySettings | Literal["on", "off"] | bool | None),
    ] = Field(
        default=None,
        description="Whether a repeat of a charged call under its idempotency key is free. `off`, `on` for the "
        "defaults below, or these settings. It concerns methods that change something. `on` is for an API that does a "
        "call once however often it is sent: the gateway passes repeats on to it.",
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

    on_response_timeout: Literal["charge", "release"] = Field(
        default="charge",
        description="What a call costs to which the API gave no answer in time, on methods that change something. On "
        "GET, HEAD and other safe methods it is free.",
    )
    on_broken_answer: Literal["auto", "charge", "release"] = Field(
        default="auto",
        description="What a call costs whose answer the API broke off. `auto`: nothing if the length of the answer was "
        "known; the price if it was a stream of which the client got something. A client that did not take what "
        "waited for it pays in any case, and so does one that kept the API waiting for the rest of its body.",
    )
    request_buffering: bool = Field(
        default=True,
        description="Gather a request's body, up to `limits.request_buffer_bytes`, before the call is charged and the "
        "API hears of it. Without it a body goes on byte by byte, and so does `Expect`; a client that breaks off then "
        "pays for what the API may have done.",
    )

    @model_validator(mode="after")
    def _free_is_free(self) -> DefaultRouteSettings:
        priced = sorted(self.model_fields_set & _PRICING)
        if self.free and priced:
            raise conflict([(name, "has no effect on a free route") for name in priced])
        return self

    @model_validator(mode="after")
    def _repeats_can_be_compared(self) -> DefaultRouteSettings:
        if self.idempotency is not None and not self.request_buffering:
            raise conflict([("idempotency", "needs request_buffering: the bodies of repeats are compared")])
        return self

    @property
    def charged_statuses(self) -> frozenset[int]:
        """The statuses that are charged on every method."""
        if self.free:
            return frozenset()
        statuses = statuses_of(self.charge_statuses)
        return statuses | _AS_200 if 200 in statuses else statuses

    @property
    def charged_if_unsafe(self) -> frozenset[int]:
        """The statuses that are charged on methods that change something, besides."""
        return PROVOKED if 200 in self.charged_statuses else frozenset()


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
