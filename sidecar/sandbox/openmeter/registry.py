"""The meters that the OpenMeter stand-in knows, and their JSON.

Source: ``openmeter/meter/httphandler/meter.go``, ``mapping.go``; the OpenAPI document's ``Meter``, ``MeterCreate``,
``MeterUpdate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

from aiohttp import web

from sidecar.sandbox.openmeter.meters import Aggregation, Meter, MeterError
from sidecar.sandbox.openmeter.openmeter_wire import Problem, format_time, parse_time

METERS_MAX = 1000
PAGE_SIZE_MAX = 1000
GROUPS_MAX = 100
NAME_CHARS_MAX = 256
TEXT_CHARS_MAX = 1024
_ORDERS = ("key", "name", "aggregation", "createdAt", "updatedAt")


@dataclass(frozen=True, slots=True)
class RegisteredMeter:
    meter: Meter
    created: datetime
    updated: datetime

    def as_json(self) -> dict[str, object]:
        meter = self.meter
        body: dict[str, object] = {
            "id": meter.id,
            "slug": meter.slug,
            "name": meter.name or meter.slug,
            "aggregation": meter.aggregation,
            "eventType": meter.event_type,
            "createdAt": format_time(self.created),
            "updatedAt": format_time(self.updated),
        }
        if meter.description:
            body["description"] = meter.description
        if meter.value_property is not None:
            body["valueProperty"] = meter.value_property
        if meter.group_by:
            body["groupBy"] = dict(meter.group_by)
        if meter.event_from is not None:
            body["eventFrom"] = format_time(meter.event_from)
        if meter.metadata:
            body["metadata"] = dict(meter.metadata)
        return body


class MeterRegistry:
    """Meters by slug. Raises :class:`Problem` as the server answers."""

    def __init__(self, meters: Iterable[Meter], now: datetime) -> None:
        self._meters: dict[str, RegisteredMeter] = {}
        for meter in meters:
            self.create(meter, now)

    def __repr__(self) -> str:
        return f"MeterRegistry({', '.join(self._meters)})"

    def get(self, id_or_slug: str) -> RegisteredMeter:
        found = self._meters.get(id_or_slug)
        if found is None:
            found = next((item for item in self._meters.values() if item.meter.id == id_or_slug), None)
        if found is None:
            raise Problem(404, f"failed to get meter: meter not found: {id_or_slug[:64]}")
        return found

    def of_type(self, event_type: str) -> list[Meter]:
        return [item.meter for item in self._meters.values() if item.meter.event_type == event_type]

    def create(self, meter: Meter, now: datetime) -> RegisteredMeter:
        if meter.slug in self._meters:
            raise Problem(409, "failed to create meter: meter with the same slug already exists")
        if len(self._meters) >= METERS_MAX:
            raise Problem(400, f"the stand-in keeps no more than {METERS_MAX} meters")
        created = self._meters[meter.slug] = RegisteredMeter(meter, now, now)
        return created

    def update(self, id_or_slug: str, body: object, now: datetime) -> RegisteredMeter:
        """Name, description, groups and metadata. What the body leaves out is emptied, as the server has it."""
        known, given = self.get(id_or_slug), _object(body)
        try:
            meter = replace(
                known.meter,
                name=_text(given, "name", NAME_CHARS_MAX),
                description=_text(given, "description", TEXT_CHARS_MAX),
                group_by=_texts(given, "groupBy"),
                metadata=_texts(given, "metadata"),
            )
        except MeterError as error:
            raise Problem(400, str(error)) from None
        updated = self._meters[meter.slug] = RegisteredMeter(meter, known.created, now)
        return updated

    def delete(self, id_or_slug: str) -> None:
        """Its events stay."""
        del self._meters[self.get(id_or_slug).meter.slug]

    def page(self, request: web.Request) -> list[RegisteredMeter]:
        query = request.query
        number = _number(request, "page", 1, 1_000_000)
        size = _number(request, "pageSize", 100, PAGE_SIZE_MAX)
        order, order_by = query.get("order", "ASC"), query.get("orderBy", "createdAt")
        if order not in ("ASC", "DESC"):
            raise Problem(400, 'parameter "order" in query has an error: value is not one of ["ASC","DESC"]')
        if order_by not in _ORDERS:
            raise Problem(400, f'parameter "orderBy" in query has an error: value is not one of {_ORDERS}')
        keys = {"key": "slug", "createdAt": "createdAt", "updatedAt": "updatedAt"}
        ordered = sorted(
            self._meters.values(),
            key=lambda item: str(item.as_json()[keys.get(order_by, order_by)]),
            reverse=order == "DESC",
        )
        return ordered[(number - 1) * size : number * size]


def meter_from_json(body: object) -> Meter:
    """A meter from a ``MeterCreate``. Raises :class:`Problem` 400 that names the field."""
    given = _object(body)
    for name in ("slug", "aggregation", "eventType"):
        if name not in given:
            raise _bad_field(name, f'property "{name}" is missing')
    begin = _text(given, "eventFrom", 64)
    event_from = parse_time(begin) if begin else None
    if begin and event_from is None:
        raise _bad_field("eventFrom", 'string doesn\'t match the format "date-time"')
    try:
        return Meter(
            slug=_text(given, "slug", 64),
            event_type=_text(given, "eventType", NAME_CHARS_MAX),
            aggregation=cast("Aggregation", _text(given, "aggregation", 64)),
            value_property=_text(given, "valueProperty", NAME_CHARS_MAX) or None,
            group_by=_texts(given, "groupBy"),
            name=_text(given, "name", NAME_CHARS_MAX),
            description=_text(given, "description", TEXT_CHARS_MAX),
            event_from=event_from,
            metadata=_texts(given, "metadata"),
        )
    except MeterError as error:
        raise Problem(400, f"invalid create meter params: {error}") from None


def _object(body: object) -> dict[str, object]:
    if not isinstance(body, dict):
        raise Problem(400, "request body has an error: doesn't match schema: value must be an object")
    return body


def _text(given: Mapping[str, object], name: str, chars_max: int) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or len(value) > chars_max:
        raise _bad_field(name, f"value must be a string of at most {chars_max} characters")
    return value


def _texts(given: Mapping[str, object], name: str) -> dict[str, str]:
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > GROUPS_MAX:
        raise _bad_field(name, f"value must be an object of at most {GROUPS_MAX} entries")
    if not all(isinstance(item, str) and len(item) <= TEXT_CHARS_MAX for item in value.values()):
        raise _bad_field(name, f"values must be strings of at most {TEXT_CHARS_MAX} characters")
    return dict(value)


def _number(request: web.Request, name: str, default: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= high:
        return int(text)
    raise Problem(400, f'parameter "{name}" in query has an error: must be a number from 1 to {high}')


def _bad_field(name: str, reason: str) -> Problem:
    return Problem(400, f'request body has an error: doesn\'t match schema: Error at "/{name}": {reason}')
