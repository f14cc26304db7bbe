"""How the Lago stand-in answers: JSON, errors, pages, times.

Source: lago-api ``app/controllers/concerns/api_errors.rb``, ``pagination.rb``; serializers write times as
``iso8601`` without fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import unquote

import orjson
from aiohttp import web

T = TypeVar("T")
Json = dict[str, object]

PER_PAGE = 100
PER_PAGE_MAX = 1000
ERROR_CHARS_MAX = 200


class Refusal(Exception):
    """A request is answered with an error: ``body`` is its JSON."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


def bad_request(message: str) -> Refusal:
    return Refusal(400, {"status": 400, "error": f"BadRequest: {message[:ERROR_CHARS_MAX]}"})


def unauthorized() -> Refusal:
    return Refusal(401, {"status": 401, "error": "Unauthorized"})


def forbidden(code: str = "feature_unavailable") -> Refusal:
    return Refusal(403, {"status": 403, "error": "Forbidden", "code": code})


def not_found(resource: str) -> Refusal:
    return Refusal(404, {"status": 404, "error": "Not Found", "code": f"{resource}_not_found"})


def internal_error() -> Refusal:
    return Refusal(500, {"status": 500, "error": "Internal Server Error"})


def not_allowed(code: str) -> Refusal:
    return Refusal(405, {"status": 405, "error": "Method Not Allowed", "code": code})


def invalid(details: Mapping[str, object]) -> Refusal:
    """422. ``details`` has a list of codes for each field, or for each event's index such an object."""
    body: Json = {
        "status": 422,
        "error": "Unprocessable Entity",
        "code": "validation_errors",
        "error_details": dict(details),
    }
    return Refusal(422, body)


def path_values(template: str, raw_path: str) -> dict[str, str]:
    """What a path names, as Rails reads it by a template such as ``/customers/{external_id}``.

    A dot ends an id, and what follows it is taken for a format, which only the end of a path can have; ``%2E`` is part
    of the id. Codes are read whole (lago-api ``config/routes.rb``: ``code: /.*/``).

    Raises :class:`Refusal` 404 for a path that Rails has no route for.
    """
    names, parts = template.split("/"), raw_path.split("/")
    found: dict[str, str] = {}
    for index, (name, part) in enumerate(zip(names, parts, strict=False)):
        if not name.startswith("{"):
            continue
        if name != "{code}":
            part, dot, format_ = part.partition(".")
            if dot and (not part or not format_ or "." in format_ or index != len(parts) - 1):
                raise not_found("resource")
        found[name.strip("{}")] = unquote(part)
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what the path names, the query (a name may occur several times), the parsed body."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Sequence[tuple[str, str]] = ()
    body: object = None

    def one(self, name: str) -> str | None:
        """The last value of a query parameter, as Rails takes it; None where it is absent or empty."""
        found = [value for key, value in self.query if key == name]
        return (found[-1] or None) if found else None

    def many(self, *names: str) -> list[str]:
        """All values of parameters such as ``status[]`` and ``status``."""
        wanted = {*names, *(f"{name}[]" for name in names)}
        return [value for key, value in self.query if key in wanted and value]

    def root(self, name: str) -> Json:
        """The object under ``name`` in the body. Raises :class:`Refusal` 400 as Rails does."""
        given = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(given, dict) or not given:
            raise bad_request(f"param is missing or the value is empty or invalid: {name}")
        return given


def filtered(call: Call, items: Iterable[T], values: Mapping[str, Callable[[T], str | None]]) -> list[T]:
    """The items whose values are those that the query asks for, ``values`` by parameter."""
    found = list(items)
    for name, value in values.items():
        asked = call.one(name)
        if asked is not None:
            found = [item for item in found if value(item) == asked]
    return found


def page(call: Call, collection: str, items: Sequence[T], view: Callable[[T], Json]) -> Json:
    """One page of ``items``, which are in order already, with Lago's ``meta``."""
    number = _positive(call.one("page"), 1)
    size = min(_positive(call.one("per_page"), PER_PAGE), PER_PAGE_MAX)
    total = len(items)
    pages = -(-total // size)
    meta: Json = {
        "current_page": number if total else 0,
        "next_page": number + 1 if number < pages else None,
        "prev_page": number - 1 if total and number > 1 else None,
        "total_pages": pages,
        "total_count": total,
    }
    return {collection: [view(item) for item in items[(number - 1) * size : number * size]], "meta": meta}


def _positive(text: str | None, default: int) -> int:
    if text and text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0:
        return int(text)
    return default


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def iso(when: datetime) -> str:
    """Cut to the second, which is how a period's end becomes 23:59:59."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_offset(when: datetime) -> str:
    """As :func:`iso`, with the offset in figures: so are the dates of fees."""
    return f"{iso(when)[:-1]}+00:00"


def iso_or_none(when: datetime | None) -> str | None:
    return None if when is None else iso(when)


def iso_ms(when: datetime) -> str:
    utc = when.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"
