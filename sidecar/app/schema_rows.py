"""Every key of the configuration as a row: path, type, default, description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from sidecar.app.configuration import Config
from sidecar.config.schema import alternatives, is_model, item_type, literals
from sidecar.valkey.settings import ValkeyUrl
from sidecar.valkey.url import Topology

_TOPOLOGIES = tuple(alternatives(ValkeyUrl))


@dataclass(frozen=True, slots=True)
class SchemaRow:
    """``path`` has ``[]`` for a list's entries and ``<name>`` for a mapping's keys; ``default`` is YAML, or "required",
    or "" for a section."""

    path: str
    type: str
    default: str
    description: str


def schema_rows(model: type[BaseModel] = Config) -> list[SchemaRow]:
    """The rows of a model and of everything below it, in the order of its fields."""
    return list(_rows(model, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[SchemaRow]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        below = [each for each in alternatives(field.annotation) if is_model(each)]
        items = [m for each in alternatives(field.annotation) for m in alternatives(item_type(each)) if is_model(m)]
        yield SchemaRow(path, _type(field), "" if below else _default(field), field.description or "")
        for each in below:
            yield from _rows(each, f"{path}.")
        for each in items:
            tag = literals(each.model_fields["type"].annotation) if len(items) > 1 else ()
            yield from _rows(each, f"{path}[{tag[0] if tag else ''}].")
        for each in alternatives(field.annotation):
            if get_origin(each) is dict and is_model(get_args(each)[1]):
                yield from _rows(get_args(each)[1], f"{path}.<name>.")


def _type(field: FieldInfo) -> str:
    parts = [_name(each) for each in alternatives(field.annotation) if each not in (type(None), *_TOPOLOGIES)]
    if any(each in _TOPOLOGIES for each in alternatives(field.annotation)):
        parts.insert(0, "URL")
    if type(None) in alternatives(field.annotation):
        parts.append("null")
    text = " or ".join(dict.fromkeys(parts))
    bounds = _bounds(field)
    return f"{text}, {bounds}" if bounds else text


def _name(annotation: Any) -> str:
    if is_model(annotation):
        return "section"
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    item = item_type(annotation)
    if item is not None:
        names = dict.fromkeys(_name(each) for each in alternatives(item))
        return f"list of {' or '.join(names)}".replace("list of section", "list of mappings")
    if origin is dict:
        return "mapping"
    return {int: "whole number", float: "number", Decimal: "decimal number", bool: "true or false", Path: "path",
            SecretStr: "secret text"}.get(annotation, "text")  # fmt: skip


def _bounds(field: FieldInfo) -> str:
    low: object = None
    high: object = None
    for constraint in _constraints(field):
        if isinstance(constraint, annotated_types.Ge):
            low = f"{constraint.ge}"
        elif isinstance(constraint, annotated_types.Gt):
            low = f"above {constraint.gt}"
        elif isinstance(constraint, annotated_types.Le):
            high = constraint.le
    if low is None:
        return ""
    if high is not None:
        return f"{low} to {high}"
    return str(low) if str(low).startswith("above") else f"{low} or more"


def _constraints(field: FieldInfo) -> Iterator[object]:
    yield from field.metadata
    for each in get_args(field.annotation):
        for metadata in getattr(each, "__metadata__", ()):
            yield from metadata.metadata if isinstance(metadata, FieldInfo) else (metadata,)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True))


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        given = {key: getattr(value, key) for key in sorted(value.model_fields_set)}
        return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in given.items()) + "}"
    if isinstance(value, tuple | list | frozenset):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, Enum):
        return str(value.value)
    assert not isinstance(value, SecretStr | Topology), "secrets and URLs have no default"
    return str(value)
