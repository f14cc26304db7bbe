"""Lago's OpenAPI document, for a check of what the stand-in answers.

The document lies beside the repository, not in it: ``../shared/contracts/lago-openapi.yaml``. Where it is absent
nothing is checked against it.

Where Lago's own serializers contradict the document, they are followed: what may be left out may be null, numbers in
text may be negative, a wallet has no ``balance``, a single wallet transaction lies under its name, a whole number
among an event's properties may be taken for an integer and for a number (the document says one of both), and the group
of events without a property has null in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).resolve().parents[4] / "shared" / "contracts" / "lago-openapi.yaml"
_URI = "urn:lago"
_METHODS = ("get", "post", "put", "delete")


def is_here() -> bool:
    return DOCUMENT.is_file()


@cache
def _document() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = _as_lago_writes(yaml.load(DOCUMENT.read_bytes(), Loader=loader))
    document["components"]["schemas"]["WalletObject"]["required"].remove("balance")
    shown = document["paths"]["/wallet_transactions/{lago_id}"]["get"]["responses"]["200"]["content"]
    schema = shown["application/json"]["schema"]
    wrapped = {"type": "object", "required": ["wallet_transaction"], "properties": {"wallet_transaction": schema}}
    shown["application/json"]["schema"] = wrapped
    return document


@cache
def _registry() -> Registry[Any]:
    resource: Resource[Any] = Resource.from_contents(_document(), default_specification=DRAFT202012)
    empty: Registry[Any] = Registry()
    return empty.with_resource(_URI, resource)


_formats = FormatChecker(formats=())


@_formats.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)


@_formats.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or datetime.strptime(value, "%Y-%m-%d") is not None


@_formats.checks("uuid", raises=ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Paths with parameters as expressions, those with fewer parameters first."""
    paths = sorted(_document()["paths"], key=lambda path: (path.count("{"), path))
    return [(re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)), path) for path in paths]


def template_of(path: str) -> str | None:
    """The document's path for one of a request, without ``/api/v1``; None if it has none."""
    return next((template for pattern, template in _patterns() if pattern.fullmatch(path)), None)


def answer_errors(method: str, path: str, status: int, content_type: str, body: object) -> list[str]:
    """What the document finds wrong with an answer."""
    template = template_of(path)
    operation = _document()["paths"].get(template or "", {}).get(method.lower())
    if operation is None:
        return [f"there is no {method} {path}"]
    if str(status) not in operation["responses"]:
        return [f"{method} {template} has no status {status}"]
    response = operation["responses"][str(status)]
    if "$ref" in response:
        name = response["$ref"].rsplit("/", 1)[1]
        content, pointer = _document()["components"]["responses"][name]["content"], f"components/responses/{name}"
    else:
        content, pointer = (
            response.get("content", {}),
            f"paths/{_escaped(template)}/{method.lower()}/responses/{status}",
        )
    if not content:
        return [] if body is None else [f"{status} has a body"]
    if content_type not in content:
        return [f"content type {content_type} is not among {sorted(content)}"]
    schema = {"$ref": f"{_URI}#/{pointer}/content/{_escaped(content_type)}/schema"}
    validator = Draft202012Validator(schema, registry=_registry(), format_checker=_formats)
    return list(_messages(validator, body))


def _escaped(part: str | None) -> str:
    """A JSON pointer's part inside a URI fragment (RFC 6901 section 6)."""
    text = (part or "").replace("~", "~0").replace("/", "~1")
    return text.replace("{", "%7B").replace("}", "%7D")


def _messages(validator: Draft202012Validator, value: object) -> Iterator[str]:
    for error in validator.iter_errors(value):
        yield f"{error.json_path}: {error.message[:300]}"


def _as_lago_writes(node: Any) -> Any:
    if isinstance(node, list):
        return [_as_lago_writes(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _as_lago_writes(item) for key, item in node.items()}
    if found.get("pattern") in ("^[0-9]+.?[0-9]*$", r"^[0-9]+.?[0-9]*$"):
        found["pattern"] = r"^-?[0-9]+\.?[0-9]*$"
    if "null" in found.get("type", ()) and "enum" in found:
        found["enum"] = [*found["enum"], None]
    if "properties aggregated by the charge model" in str(found.get("description")) and "additionalProperties" in found:
        found["additionalProperties"] = {"type": ["string", "null"]}
    if {"type": "integer"} in found.get("oneOf", ()) and {"type": "number"} in found["oneOf"]:
        found["anyOf"] = found.pop("oneOf")
    properties = found.get("properties")
    if isinstance(properties, dict) and found.get("type", "object") != "string":
        needed = found.get("required", [])
        found["properties"] = {
            name: schema if name in needed or not isinstance(schema, dict) else {"anyOf": [schema, {"type": "null"}]}
            for name, schema in properties.items()
        }
    return found
