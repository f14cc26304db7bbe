"""OpenMeter's OpenAPI document, for a check of what the stand-in takes and answers.

The document lies beside the repository, not in it: ``../shared/contracts/openmeter-openapi.yaml``. Where it is absent
there are no such tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).resolve().parents[4] / "shared" / "contracts" / "openmeter-openapi.yaml"
_URI = "urn:openmeter"


@cache
def _document() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = _as_json_schema(yaml.load(DOCUMENT.read_bytes(), Loader=loader))
    return document


@cache
def _registry() -> Registry[Any]:
    resource: Resource[Any] = Resource.from_contents(_document(), default_specification=DRAFT202012)
    empty: Registry[Any] = Registry()
    return empty.with_resource(_URI, resource)


_formats = FormatChecker(formats=())


@_formats.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """Not the stand-in's own check: an independent one, if a lax one. Go wants capitals and an offset."""
    return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)


def request_errors(method: str, path: str, content_type: str, body: object) -> list[str]:
    """What the document finds wrong with a request's body; path as in the document."""
    content = _operation(method, path)["requestBody"]["content"]
    if content_type not in content:
        return [f"content type {content_type} is not among {sorted(content)}"]
    return _errors(f"paths/{_escaped(path)}/{method}/requestBody/content/{_escaped(content_type)}/schema", body)


def answer_errors(method: str, path: str, status: int, content_type: str, body: object) -> list[str]:
    """What the document finds wrong with an answer; an undocumented status falls under its ``default``."""
    responses = _operation(method, path)["responses"]
    key = str(status) if str(status) in responses else "default"
    content = responses[key].get("content", {})
    if not content:
        return [] if body is None else [f"{status} has a body"]
    if content_type not in content:
        return [f"content type {content_type} is not among {sorted(content)}"]
    return _errors(f"paths/{_escaped(path)}/{method}/responses/{key}/content/{_escaped(content_type)}/schema", body)


def _operation(method: str, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = _document()["paths"][path][method]
    return operation


def _escaped(part: str) -> str:
    """A JSON pointer's part inside a URI fragment (RFC 6901 section 6)."""
    text = part.replace("~", "~0").replace("/", "~1")
    return text.replace("{", "%7B").replace("}", "%7D")


def _errors(pointer: str, value: object) -> list[str]:
    schema = {"$ref": f"{_URI}#/{pointer}"}
    validator = Draft202012Validator(schema, registry=_registry(), format_checker=_formats)
    return list(_messages(validator, value))


def _messages(validator: Draft202012Validator, value: object) -> Iterator[str]:
    for error in validator.iter_errors(value):
        yield f"{error.json_path}: {error.message}"


def _as_json_schema(node: Any) -> Any:
    """OpenAPI 3.0 says ``nullable``; JSON Schema has the type "null", and wants it among an enum's values too."""
    if isinstance(node, list):
        return [_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _as_json_schema(item) for key, item in node.items() if key != "nullable"}
    if node.get("nullable") is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found
