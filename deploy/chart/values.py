"""Writes what follows from the chart's values.yaml: values.schema.json, and the table of values in the chart's README.

    python -m deploy.chart.values

A comment above a key is its description. A comment line ``@schema`` narrows the schema of a key, which is otherwise
what its default says: a string, a whole number, true or false, or a section of the keys below it. Settings of gateways
(``#/$defs/Config``) have the schema of the gateway's own configuration, so that a slip of the pen in them is found
before anything is deployed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sidecar.app.configuration import Config

CHART: Final = Path(__file__).parent / "quota-sidecar"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
_KEY: Final = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z0-9_]+):(?:\s|$)")
_BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Of pydantic, where it cannot say it in JSON Schema's words."""
_SAYS_NOTHING: Final = {"default", "discriminator", "writeOnly", "format"}
_QUANTITY: Final = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kKMGT]i?)?$"}
_AMOUNTS: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("cpu", "memory", "ephemeral-storage"), _QUANTITY),
}
_DEFINITIONS: Final[dict[str, Any]] = {
    "quantity": _QUANTITY,
    "limit": {"anyOf": [_QUANTITY, {"const": "none"}]},
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    },
    "tolerations": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "key": {"type": "string"},
                "operator": {"enum": ["Exists", "Equal"]},
                "value": {"type": "string"},
                "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "tolerationSeconds": {"type": "integer"},
            },
        },
    },
}


class ValuesError(ValueError):
    """A value without a description, or with an ``@schema`` that cannot be read; the message names it."""


@dataclass(slots=True)
class Value:
    """One key with a comment of its own. ``below``: those within it; with none it is a leaf."""

    path: tuple[str, ...]
    default: Any
    description: str = ""
    narrowed: dict[str, Any] = field(default_factory=dict)
    below: list[Value] = field(default_factory=list)


def read_values(text: str) -> Value:
    """The tree of described keys. One without a description is a section, or part of the default above it."""
    root = Value((), yaml.safe_load(text))
    stack: list[tuple[int, Value]] = [(-1, root)]
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is None:
            comment = []
            continue
        indent = len(match["indent"])
        while stack[-1][0] >= indent:
            stack.pop()
        above = stack[-1][1]
        is_leaf = bool(above.description)
        if not is_leaf:
            value = _value((*above.path, match["key"]), above.default[match["key"]], comment)
            if not value.description and not (isinstance(value.default, dict) and value.default):
                raise ValuesError(f"{'.'.join(value.path)} has no description")
            above.below.append(value)
            stack.append((indent, value))
        comment = []
    return root


def _value(path: tuple[str, ...], default: Any, comment: list[str]) -> Value:
    value = Value(path, default)
    if "" in comment:  # what a blank line parts from the key is about the file
        comment = comment[len(comment) - comment[::-1].index("") :]
    narrowed = [line.removeprefix("@schema").strip() for line in comment if line.startswith("@schema")]
    value.description = " ".join(line for line in comment if not line.startswith("@schema"))
    for text in narrowed:
        try:
            value.narrowed |= yaml.safe_load(text)
        except (yaml.YAMLError, TypeError):
            raise ValuesError(f"{'.'.join(path)}: @schema cannot be read: {text}") from None
    return value


def schema(root: Value) -> dict[str, Any]:
    """The JSON schema of the whole, in the words that Helm's validator knows (draft 7)."""
    document = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "quota-sidecar", **_section(root)}
    # Helm gives it to every chart that is part of another.
    document["properties"] = {"global": {"type": "object"}, **document["properties"]}
    document["$defs"] = _DEFINITIONS | _config_definitions()
    return document


def _section(value: Value) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {each.path[-1]: _of(each) for each in value.below},
    }


def _of(value: Value) -> dict[str, Any]:
    if value.below:
        return _section(value)
    if "$ref" in value.narrowed:  # beside which draft 7 reads nothing
        return dict(value.narrowed)
    types = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    found = {"description": value.description, "type": types[type(value.default)], **value.narrowed}
    if found["type"] == "object" and "additionalProperties" not in found:
        raise ValuesError(f"{'.'.join(value.path)} takes any key: say which with @schema")
    if found["type"] == "array" and "items" not in found:
        raise ValuesError(f"{'.'.join(value.path)} takes any item: say which with @schema")
    return found


def _config_definitions() -> dict[str, Any]:
    """The gateway's configuration, and its sections. Nothing is required, since it is written in parts."""
    full = Config.model_json_schema()
    sections = full.pop("$defs")
    full.pop("required", None)
    definitions = {"Config": full, **sections}
    return {name: _plain(each) for name, each in definitions.items()}


def _plain(node: Any) -> Any:
    """In words of draft 7, and without what says nothing to a validator."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    dropped = _SAYS_NOTHING | ({"title"} if isinstance(node.get("title"), str) else set())
    if "patternProperties" in node:  # names that do not fit the pattern are wrong
        node = {"additionalProperties": False, **node}
    return {
        _BOUNDS.get(key, key): {name: _plain(each) for name, each in value.items()}
        if key == "properties"
        else _plain(value)
        for key, value in node.items()
        if key not in dropped
    }


def leaves(value: Value) -> Iterator[Value]:
    """Every value that can be set, in the order of the file."""
    if not value.below and value.path:
        yield value
    for each in value.below:
        yield from leaves(each)


def table(root: Value) -> str:
    """The README's table, in Markdown."""
    lines = ["| value | default | meaning |", "| --- | --- | --- |"]
    for value in leaves(root):
        default = json.dumps(value.default, ensure_ascii=False)
        cells = (f"`{'.'.join(value.path)}`", f"`{default}`", value.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def readme_with(text: str, root: Value) -> str:
    """The README with its table made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table(root)}\n\n{END}{after}"


def written() -> dict[Path, str]:
    """The files that follow from values.yaml, with what they should hold."""
    root = read_values((CHART / "values.yaml").read_text())
    readme = CHART / "README.md"
    return {
        CHART / "values.schema.json": json.dumps(schema(root), indent=1, ensure_ascii=False) + "\n",
        readme: readme_with(readme.read_text(), root),
    }


def main() -> int:
    for path, text in written().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
