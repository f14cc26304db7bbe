"""What OpenMeter takes for a usage event, and what it says about one that it does not take.

Source: the OpenAPI document's ``Event``, checked by kin-openapi as ``openmeter/server/server.go`` sets it up,
then ``openmeter/ingest/httpdriver/ingest.go`` (v1) and ``api/v3/handlers/events/ingest.go`` (v3), which read events
with ``v2/event/event_unmarshal.go`` of the CloudEvents SDK for Go. The wording of the details follows kin-openapi, of
which the server shows the first line only, and the SDK.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import orjson

from sidecar.basics.go_url import GoUrlError, check_go_url
from sidecar.sandbox.openmeter.openmeter_wire import InvalidParameter, Problem, parse_time

Version = Literal["v1", "v3"]

SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
EITHER = "application/json"
#: v3 names every bad field of a batch; a batch of nothing but bad events must not make an endless answer.
INVALID_PARAMETERS_MAX = 100
SOURCE_CHARS_SHOWN = 256

_REQUIRED = ("id", "source", "specversion", "type", "subject")
_KNOWN = frozenset((*_REQUIRED, "time", "data", "datacontenttype", "dataschema"))
_PLAIN = frozenset((*_REQUIRED, "time", "data"))
_NULLABLE = frozenset(("time", "data", "datacontenttype", "dataschema"))
_SPEC_VERSIONS = ("1.0", "0.3")  # those that the CloudEvents SDK for Go reads


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """What survives of an event: extensions do not. ``time_s`` is None when the sender left it out.

    ``data`` is its JSON text, empty when there was none.
    """

    id: str
    source: str
    type: str
    subject: str
    time_s: int | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with a body: where (a path, no leading slash), which schema keyword, in words."""

    path: str
    rule: str
    reason: str


def parse_events(content_type: str, body: bytes, version: Version) -> list[CloudEvent]:
    """The events in an ingest request: all of them, or none and a :class:`Problem` 400.

    v1 compares the content type exactly, so that a ``; charset=utf-8`` is refused; v3 ignores parameters.
    v1 lets CloudEvents extensions pass, v3 refuses unknown keys. An empty array is fine as a batch only.
    """
    media_type = content_type.split(";", 1)[0].strip().lower()
    if media_type not in (SINGLE, BATCH, EITHER):
        reason = f'header Content-Type has unexpected value "{content_type[:200]}"'
        raise _refusal(version, f"request body has an error: {reason}")
    if not body:
        raise _refusal(version, "request body has an error: value is required but missing")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"failed to decode request body: {error.msg} at byte {error.pos}"
        raise _refusal(version, f"request body has an error: {message}") from None
    _check_schema(document, media_type, version)
    if version == "v1" and content_type not in (SINGLE, BATCH, EITHER):
        raise Problem(400, f"invalid content type: {content_type[:200]}")
    items = document if isinstance(document, list) else [document]
    flaw = next((flaw for item in items if (flaw := _sdk_flaw(item)) is not None), None)
    if media_type == EITHER and (flaw is not None or not items):
        flaw = "no events found"  # it is tried as one event and as an array, and what was wrong is forgotten
    if flaw is not None:
        raise _unreadable(version, flaw)
    return [_event(item) for item in items]


def is_empty_batch(content_type: str, body: bytes) -> bool:
    """Whether a request is an empty batch, in which nothing can be wrong."""
    return content_type.split(";", 1)[0].strip() == BATCH and body.split() in ([b"[]"], [b"[", b"]"])


def _check_schema(document: object, media_type: str, version: Version) -> None:
    name = "Event" if version == "v1" else "MeteringEvent"
    if media_type == SINGLE or (media_type == EITHER and not isinstance(document, list)):
        schema, flaws = f" #/components/schemas/{name}", _flaws(document, "", version)
    elif isinstance(document, list):
        schema, flaws = "", _batch_flaws(document, version)
    else:
        schema, flaws = "", iter([Flaw("", "type", "value must be an array")])
    first = next(flaws, None)
    if first is None:
        return
    if media_type == EITHER:
        schema, text = " #/components/schemas/IngestEventsBody", 'doesn\'t match any schema from "anyOf"'
    else:
        text = f'Error at "/{first.path}": {first.reason}' if first.path else first.reason
    named = [first, *(flaw for flaw, _ in zip(flaws, range(INVALID_PARAMETERS_MAX - 1), strict=False))]
    raise _refusal(version, f"request body has an error: doesn't match schema{schema}: {text}", named)


def _batch_flaws(items: list[object], version: Version) -> Iterator[Flaw]:
    for index, item in enumerate(items):
        yield from _flaws(item, f"{index}/", version)


def _flaws(item: object, at: str, version: Version) -> Iterator[Flaw]:
    """Values in the order of their names, then what is missing: the order in which kin-openapi finds them."""
    if not isinstance(item, dict):
        yield Flaw(at.rstrip("/"), "type", "value must be an object")
        return
    if _is_plain(item):
        return
    for name in sorted(item):
        reason = _value_flaw(name, item[name], version)
        if reason is not None:
            yield Flaw(f"{at}{name}", *reason)
    for name in _REQUIRED:
        if name not in item:
            yield Flaw(f"{at}{name}", "required", f'property "{name}" is missing')


def _is_plain(item: dict[str, object]) -> bool:
    """The short way for nearly every event. What is odd goes the long way, which may still find it good."""
    time, data = item.get("time"), item.get("data")
    return (
        item.keys() <= _PLAIN
        and all(isinstance(value := item.get(name), str) and value != "" for name in _REQUIRED)
        and isinstance(time, str)
        and parse_time(time) is not None
        and isinstance(data, dict)
    )


def _value_flaw(name: str, value: object, version: Version) -> tuple[str, str] | None:
    if name not in _KNOWN:
        unknown = ("additionalProperties", f'property "{name}" is unsupported')
        return unknown if version == "v3" else None
    if value is None:
        return None if name in _NULLABLE else ("nullable", "Value is not nullable")
    if name == "data":
        return None if isinstance(value, dict) else ("type", "value must be an object")
    if not isinstance(value, str):
        return "type", "value must be a string"
    if name == "time":
        wrong = parse_time(value) is None
        return ("format", 'string doesn\'t match the format "date-time"') if wrong else None
    if name == "datacontenttype":
        wrong = value != "application/json"
        return ("enum", 'value is not one of the allowed values ["application/json"]') if wrong else None
    return None if value else ("minLength", "minimum string length is 1")


def _sdk_flaw(item: dict[str, object]) -> str | None:
    """What the CloudEvents SDK refuses, which reads an event after the schema has been met; None if it takes it.

    It has no rule for ``id``, ``type`` and ``subject`` that the schema has not.
    """
    if item["specversion"] not in _SPEC_VERSIONS:
        return f'specversion: unknown value: "{str(item["specversion"])[:40]}"'
    source = str(item["source"])
    return None if _is_uri_reference(source) else f"cannot parse uri ref: {source[:SOURCE_CHARS_SHOWN]}"


@lru_cache(maxsize=64)  # a publisher's events share their source
def _is_uri_reference(text: str) -> bool:
    try:
        check_go_url(text)
    except GoUrlError:
        return False
    return True


def _event(item: dict[str, object]) -> CloudEvent:
    time, data = item.get("time"), item.get("data")
    when = parse_time(time) if isinstance(time, str) else None
    return CloudEvent(
        id=str(item["id"]),
        source=str(item["source"]),
        type=str(item["type"]),
        subject=str(item["subject"]),
        # Whole seconds: kafkaingest/serializer sends Unix seconds, and ClickHouse's DateTime has no fraction.
        time_s=None if when is None else math.floor(when.timestamp()),
        # Copied, because what orjson hands out keeps its working buffer: 4 KiB for every event.
        data=b"" if data is None else bytes(memoryview(orjson.dumps(data))),
    )


def _unreadable(version: Version, detail: str) -> Problem:
    return Problem(400, f"invalid event: {detail}") if version == "v1" else _refusal(version, detail)


def _refusal(version: Version, detail: str, flaws: list[Flaw] | None = None) -> Problem:
    if version == "v1":
        return Problem(400, detail)
    named = [InvalidParameter(flaw.path.replace("/", "."), flaw.rule, flaw.reason) for flaw in flaws or ()]
    return Problem(400, detail, invalid=named)
