"""What every answer of the sample API has in common: JSON envelopes and error bodies.

Source: Open Banking Read-Write API Specification v3.1, "Return & Error Codes", "Links", "Meta".
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from uuid import uuid4

import orjson
from aiohttp import web

JSON_TYPE = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Detail:
    """One entry of ``Errors``: a ``code`` of the UK.OBIE list; ``path`` is the field or parameter meant."""

    code: str
    message: str
    path: str = ""


class ObieError(Exception):
    """A request is answered with an OBErrorResponse1 instead of a resource."""

    def __init__(self, status: int, *details: Detail) -> None:
        super().__init__(f"{status} {'; '.join(d.message for d in details)}")
        self.status = status
        self.details = details


def bad_request(code: str, message: str, path: str = "") -> ObieError:
    return ObieError(400, Detail(code, message, path))


def reason_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers={"Content-Type": JSON_TYPE})


def error_answer(error: ObieError) -> web.Response:
    """The answer for ``error``: ``{Code, Id, Message, Errors: [{ErrorCode, Message, Path}]}``."""
    phrase = reason_phrase(error.status)
    entries: list[dict[str, str]] = []
    for detail in error.details:
        entry = {"ErrorCode": detail.code, "Message": detail.message}
        if detail.path:
            entry["Path"] = detail.path
        entries.append(entry)
    body = {"Code": f"{error.status} {phrase}", "Id": str(uuid4()), "Message": phrase, "Errors": entries}
    return json_answer(body, error.status)


def base_url(request: web.Request) -> str:
    """Scheme and authority as the caller wrote them: links lead through a gateway that keeps ``Host``."""
    host = request.host.encode("ascii", "replace").decode()
    return f"{request.scheme}://{host}"


def envelope(request: web.Request, data: object, *, status: int = 200) -> web.Response:
    """A resource without pages."""
    links = {"Self": f"{base_url(request)}{request.rel_url.raw_path_qs}"}
    return json_answer({"Data": data, "Links": links, "Meta": {"TotalPages": 1}}, status)
