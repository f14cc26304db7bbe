"""values.yaml, its schema and the table in the README say the same, and nothing in them takes any key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deploy.chart.values import CHART, ValuesError, leaves, read_values, schema, written
from sidecar.app.configuration import Config

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
README = (CHART / "README.md").read_text()
TEMPLATES = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())


def test_schema_and_table_are_those_of_values_yaml() -> None:
    for path, text in written().items():
        assert path.read_text() == text, f"{path.name}: run python -m deploy.chart.values"


def test_every_value_is_in_the_schema_and_every_key_of_the_schema_is_a_value() -> None:
    assert sorted(sections(SCHEMA)) == sorted([*keys(VALUES), "global"])


def test_every_value_is_in_the_readme_s_table_with_its_default_and_a_meaning() -> None:
    rows = {line.split("`")[1]: line for line in README.splitlines() if line.startswith("| `")}
    found = list(leaves(read_values((CHART / "values.yaml").read_text())))
    assert sorted(rows) == sorted(".".join(each.path) for each in found)
    for each in found:
        row = rows[".".join(each.path)]
        assert f"`{json.dumps(each.default, ensure_ascii=False)}`" in row
        assert len(each.description) > 5, row


def test_no_section_of_the_schema_takes_a_key_that_it_does_not_know() -> None:
    open_ones = [path for path, node in objects(SCHEMA, "") if node.get("additionalProperties", True) is True]
    assert open_ones == ["/properties/global"], "Helm's own, of which the chart reads nothing"


def test_settings_of_gateways_have_the_schema_of_their_own_configuration() -> None:
    assert set(SCHEMA["$defs"]["Config"]["properties"]) == set(Config.model_fields)
    assert SCHEMA["$defs"]["LimitsSettings"]["properties"]["connections_max"]["maximum"] == 1_000_000


def test_every_value_has_an_effect() -> None:
    without = [
        each.path for each in leaves(read_values((CHART / "values.yaml").read_text())) if each.path[-1] not in TEMPLATES
    ]
    assert without == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "a has no description"),
        ("# About b.\nb:\n  c: 1\n", "b takes any key: say which with @schema"),
        ("# About b.\nb: []\n", "b takes any item: say which with @schema"),
        ("# About b.\n# @schema {enum: [}\nb: 1\n", "b: @schema cannot be read: {enum: \\[}"),
    ],
)
def test_a_value_that_is_not_described_is_an_error_that_names_it(text: str, message: str) -> None:
    with pytest.raises(ValuesError, match=message):
        schema(read_values(text))


def test_a_comment_that_a_blank_line_parts_from_a_value_is_not_about_it() -> None:
    [value] = leaves(read_values("# About the file.\n\n# About a,\n# at length.\na: 1\n"))
    assert value.description == "About a, at length."


def keys(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of sections and values; settings of gateways and the like are one value."""
    for key, value in values.items():
        here = f"{path}.{key}".lstrip(".")
        yield here
        if isinstance(value, dict) and is_section(here):
            yield from keys(value, here)


def is_section(path: str) -> bool:
    """Whether the schema knows the keys of a mapping here, and not in a definition."""
    node: Any = SCHEMA
    for key in path.split("."):
        node = node["properties"][key]
    return "properties" in node


def sections(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, below in node.get("properties", {}).items():
        here = f"{path}.{key}".lstrip(".")
        yield here
        yield from sections(below, here)


def objects(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a mapping."""
    if isinstance(node, dict):
        if node.get("type") == "object" or "object" in node.get("type", ()):
            yield path, node
        for key, below in node.items():
            yield from objects(below, f"{path}/{key}")
    elif isinstance(node, list):
        for number, below in enumerate(node):
            yield from objects(below, f"{path}/{number}")
