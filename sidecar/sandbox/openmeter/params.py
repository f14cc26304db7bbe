"""Reads the parameters of a meter query from a query string or a JSON body, and refuses what is wrong.

Source: ``openmeter/meter/httphandler/mapping.go``, ``openmeter/streaming/query_params.go``,
and the OpenAPI document for types and limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from aiohttp import web

from sidecar.sandbox.openmeter.filters import string_test
from sidecar.sandbox.openmeter.meters import Meter
from sidecar.sandbox.openmeter.openmeter_wire import Problem, parse_time
from sidecar.sandbox.openmeter.query import SUBJECT, WINDOW_SIZES, GroupFilter, Query, WindowSize

ITEMS_MAX = 100
CLIENT_ID_CHARS_MAX = 36

_FILTER_KEY = re.compile(r"filterGroupBy\[([^\]]+)\]")


def query_from_string(meter: Meter, request: web.Request) -> Query:
    """The parameters of ``GET …/query``. Raises :class:`Problem` 400 that names the parameter."""
    query = request.query
    body: dict[str, object] = {}
    for name in ("clientId", "from", "to", "windowSize", "windowTimeZone"):
        if name in query:
            body[name] = query[name]
    for name in ("subject", "filterCustomerId", "groupBy"):
        if name in query:
            body[name] = query.getall(name)
    simple = {match.group(1): [query[name]] for name in query if (match := _FILTER_KEY.fullmatch(name))}
    if simple:
        body["filterGroupBy"] = simple
    if "advancedMeterGroupByFilters" in query:
        try:
            body["advancedMeterGroupByFilters"] = orjson.loads(query["advancedMeterGroupByFilters"])
        except orjson.JSONDecodeError:
            raise bad_parameter("advancedMeterGroupByFilters", "value is not JSON") from None
    return query_from_body(meter, body)


def query_from_body(meter: Meter, body: object) -> Query:
    """The parameters of ``POST …/query``. Raises :class:`Problem` 400 that names the parameter."""
    if not isinstance(body, dict):
        raise Problem(400, "request body has an error: doesn't match schema: value must be an object")
    client_id = _text(body, "clientId")
    if client_id is not None and not 1 <= len(client_id) <= CLIENT_ID_CHARS_MAX:
        raise bad_parameter("clientId", f"must have 1 to {CLIENT_ID_CHARS_MAX} characters")
    begin, end = time_parameter(body, "from"), time_parameter(body, "to")
    if begin is not None and end is not None and begin >= end:
        same = begin == end
        raise Problem(400, "from and to cannot be equal" if same else "from must be before to")
    window = _text(body, "windowSize")
    if window is not None and window not in WINDOW_SIZES:
        allowed = ",".join(f'"{size}"' for size in WINDOW_SIZES)
        raise bad_parameter("windowSize", f"value is not one of the allowed values [{allowed}]")
    customers = _texts(body, "filterCustomerId")
    if customers:
        # The stand-in keeps no customers, so it knows none of them.
        raise Problem(404, f"customer with id {customers[0][:64]} not found")
    group_by = _texts(body, "groupBy") or ()
    for key in group_by:
        if key == "customer_id":
            raise Problem(400, "customer filter is required with customer_id group by")
        if key != SUBJECT and key not in meter.group_by:
            raise Problem(400, f"invalid group by: {key[:80]}")
    subjects = _texts(body, "subject")
    if subjects is not None and SUBJECT not in group_by:
        group_by = (*group_by, SUBJECT)  # filtering by subject groups by it as well
    return Query(
        begin=begin,
        end=end,
        window=cast("WindowSize | None", window),
        zone=_zone(_text(body, "windowTimeZone") or "UTC"),
        subjects=subjects or (),
        group_by=tuple(dict.fromkeys(group_by)),
        filters=_filters(meter, body),
    )


def check_whole_minutes(query: Query) -> None:
    """As versions before 2025-03-06 have it. Raises :class:`Problem` 400 for a bound within a minute."""
    for name, bound in (("from", query.begin), ("to", query.end)):
        if bound is not None and (bound.second or bound.microsecond):
            raise Problem(400, f"{name} must be truncated to the minute")


def _filters(meter: Meter, body: Mapping[str, object]) -> tuple[GroupFilter, ...]:
    simple, advanced = _object(body, "filterGroupBy"), _object(body, "advancedMeterGroupByFilters")
    if simple and advanced:
        both = "advanced meter group by filters and filter group by cannot be used together"
        raise Problem(400, both)
    found: list[GroupFilter] = []
    for key, values in simple.items():
        if key not in meter.group_by:
            raise Problem(400, f"invalid group by filter: {key[:80]}")
        allowed = _texts(simple, key)
        if allowed:
            found.append(GroupFilter(key, frozenset(allowed).__contains__))
        elif values is None:
            raise bad_parameter("filterGroupBy", "values must be arrays of strings")
    for key, condition in advanced.items():
        if key not in meter.group_by:
            raise Problem(400, f"meter does not have group by: {key[:80]}")
        test = string_test(condition)
        if test is not None:
            found.append(GroupFilter(key, test))
    return tuple(found)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Problem(400, f"invalid time zone: unknown time zone {name[:80]}") from None


def time_parameter(body: Mapping[str, object], name: str) -> datetime | None:
    """A date-time, or None if it is not given. Raises :class:`Problem` 400 for anything else."""
    text = _text(body, name)
    if text is None:
        return None
    when = parse_time(text)
    if when is None:
        raise bad_parameter(name, 'string doesn\'t match the format "date-time"')
    return when.astimezone(UTC) if when.utcoffset() == timedelta(0) else when


def _text(body: Mapping[str, object], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_parameter(name, "value must be a string")
    return value


def _texts(body: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise bad_parameter(name, "value must be an array of strings")
    if len(value) > ITEMS_MAX:
        raise bad_parameter(name, f"maximum number of items is {ITEMS_MAX}")
    return tuple(value)


def _object(body: Mapping[str, object], name: str) -> dict[str, object]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_parameter(name, "value must be an object")
    return value


def bad_parameter(name: str, reason: str) -> Problem:
    return Problem(400, f'parameter "{name[:80]}" has an error: {reason}')
