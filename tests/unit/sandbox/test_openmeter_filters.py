from __future__ import annotations

import pytest

from sidecar.sandbox.openmeter.filters import string_test
from sidecar.sandbox.openmeter.openmeter_wire import Problem


@pytest.mark.parametrize(
    ("condition", "passes", "fails"),
    [
        ({"$eq": "GET"}, ["GET"], ["get", "GETS", ""]),
        ({"$ne": "GET"}, ["POST", ""], ["GET"]),
        ({"$in": ["a", "b"]}, ["a", "b"], ["c"]),
        ({"$nin": ["a", "b"]}, ["c"], ["a", "b"]),
        ({"$in": []}, [], ["a"]),
        ({"$like": "/acc%"}, ["/accounts", "/acc"], ["/balances", "x/acc"]),
        ({"$like": "%s"}, ["accounts", "s"], ["account"]),
        ({"$like": "a%b%c"}, ["abc", "a-b-c", "abbc", "abcbc"], ["acb", "ab"]),
        ({"$like": "a_c"}, ["abc", "a\nc"], ["ac", "abbc"]),
        ({"$like": r"100\%"}, ["100%"], ["1000"]),
        ({"$like": "a.c"}, ["a.c"], ["abc"]),
        ({"$nlike": "/acc%"}, ["/balances"], ["/accounts"]),
        ({"$ilike": "/ACC%"}, ["/accounts"], ["/balances"]),
        ({"$nilike": "/ACC%"}, ["/balances"], ["/accounts"]),
        ({"$gt": "b"}, ["c"], ["b", "a"]),
        ({"$gte": "b"}, ["b", "c"], ["a"]),
        ({"$lt": "b"}, ["a"], ["b", "c"]),
        ({"$lte": "b"}, ["a", "b"], ["c"]),
        ({"$and": [{"$gte": "b"}, {"$lt": "d"}]}, ["b", "c"], ["a", "d"]),
        ({"$or": [{"$eq": "a"}, {"$eq": "b"}]}, ["a", "b"], ["c"]),
        ({"$eq": None, "$ne": "a"}, ["b"], ["a"]),
    ],
)
def test_a_filter_lets_pass_what_its_operator_says(condition: object, passes: list[str], fails: list[str]) -> None:
    test = string_test(condition)
    assert test is not None
    assert [text for text in passes + fails if test(text)] == passes


@pytest.mark.parametrize("condition", [{}, {"$eq": None}, {"$and": []}, {"$or": [{}]}])
def test_an_empty_filter_is_no_filter(condition: object) -> None:
    assert string_test(condition) is None


def nested(depth: int) -> object:
    return {"$and": [nested(depth - 1)]} if depth else {"$eq": "a"}


@pytest.mark.parametrize(
    "condition",
    [
        "GET",
        {"$eq": 7},
        {"$in": "a"},
        {"$in": [1]},
        {"$in": ["a"] * 101},
        {"$and": {"$eq": "a"}},
        {"$regex": "a"},
        {"$eq": "a", "$ne": "b"},
        {"$like": "%" * 257},
        nested(10),
    ],
)
def test_a_filter_that_is_not_understood_is_refused(condition: object) -> None:
    with pytest.raises(Problem, match="invalid filter") as caught:
        string_test(condition)
    assert caught.value.status == 400


def test_a_pattern_of_nothing_but_wildcards_ends() -> None:
    test = string_test({"$like": "%a" * 100 + "b"})
    assert test is not None
    assert not test("a" * 5000)
