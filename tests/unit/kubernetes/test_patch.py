"""Patches, applied by somebody else's implementation of RFC 6902."""

from __future__ import annotations

import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.kubernetes.patch import json_patch

KEYS = st.text(alphabet="ab/~.-01", max_size=3)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(alphabet="xy", max_size=2))
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[Any, Any]:
    """A document, and what a few insertions, removals and replacements make of it."""
    before = draw(DOCUMENTS)
    after = json.loads(json.dumps(before))
    for _ in range(draw(st.integers(0, 3))):
        at = after
        while isinstance(at, dict | list) and at and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not isinstance(at[key], dict | list):
                break
            at = at[key]
        if isinstance(at, dict):
            at[draw(KEYS)] = draw(DOCUMENTS)
        elif isinstance(at, list):
            where = draw(st.integers(0, len(at)))
            at[where : where + draw(st.integers(0, 1))] = draw(st.lists(LEAVES, max_size=2))
    return before, after


def as_json(document: Any) -> str:
    """Python takes True for 1; JSON does not."""
    return json.dumps(document, sort_keys=True)


@settings(max_examples=200)
@given(st.tuples(DOCUMENTS, DOCUMENTS) | changed())
def test_a_patch_makes_the_second_of_the_first(documents: tuple[Any, Any]) -> None:
    before, after = documents
    made = jsonpatch.apply_patch(before, json_patch(before, after))
    assert as_json(made) == as_json(after)


@given(DOCUMENTS)
def test_what_is_the_same_needs_no_operation(document: Any) -> None:
    assert json_patch(document, json.loads(json.dumps(document))) == []


def test_true_is_not_taken_for_one() -> None:
    assert json_patch({"a": 1}, {"a": True}) == [{"op": "replace", "path": "/a", "value": True}]


@pytest.mark.parametrize(
    ("before", "after", "operations"),
    [
        ([1], [1, 2, 3], [("add", "/-", 2), ("add", "/-", 3)]),
        ([1, 3], [1, 2, 3], [("add", "/1", 2)]),
        ([3], [1, 2, 3], [("add", "/0", 1), ("add", "/1", 2)]),
        ([1, 2, 3], [1, 3], [("remove", "/1", None)]),
        ([{"n": "a"}], [{"n": "b"}, 2], [("replace", "/0/n", "b"), ("add", "/-", 2)]),
        ({}, {"a": {"b": 1}}, [("add", "/a", {"b": 1})]),
        ({"a": None}, {"a": {"b": 1}}, [("replace", "/a", {"b": 1})]),
        ({"a/b": {"~1": 1}}, {"a/b": {"~1": 2}}, [("replace", "/a~1b/~01", 2)]),
        ({"a": 1, "b": 2}, {"b": 2}, [("remove", "/a", None)]),
    ],
    ids=[
        "appended", "inserted", "put before", "taken out", "changed and appended", "a parent that is missing",
        "a parent that is null", "names that need an escape", "a key that goes",
    ],
)  # fmt: skip
def test_a_patch_names_what_is_new_and_no_more(before: Any, after: Any, operations: list[tuple[str, str, Any]]) -> None:
    made = [(each["op"], each["path"], each.get("value")) for each in json_patch(before, after)]
    assert made == operations
