"""From two JSON documents to the patch between them (RFC 6902)."""

from __future__ import annotations

from typing import Any

import orjson

Operation = dict[str, Any]


def json_patch(before: Any, after: Any) -> list[Operation]:
    """Operations that make ``after`` of ``before``.

    In a list, what both begin and end with is left alone; what is between is compared place by place, then inserted or
    removed. That is short for what injection does, and correct, if long, for anything else.
    """
    operations: list[Operation] = []
    _compare(before, after, "", operations)
    return operations


def _compare(before: Any, after: Any, path: str, operations: list[Operation]) -> None:
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            if key not in after:
                operations.append({"op": "remove", "path": f"{path}/{_escaped(key)}"})
        for key, value in after.items():
            here = f"{path}/{_escaped(key)}"
            if key in before:
                _compare(before[key], value, here, operations)
            else:
                operations.append({"op": "add", "path": here, "value": value})
    elif isinstance(before, list) and isinstance(after, list):
        _compare_lists(before, after, path, operations)
    else:
        operations.append({"op": "replace", "path": path, "value": after})


def _compare_lists(before: list[Any], after: list[Any], path: str, operations: list[Operation]) -> None:
    shorter = min(len(before), len(after))
    head = 0
    while head < shorter and _same(before[head], after[head]):
        head += 1
    tail = 0
    while tail < shorter - head and _same(before[-1 - tail], after[-1 - tail]):
        tail += 1
    both = shorter - tail
    for at in range(head, both):
        _compare(before[at], after[at], f"{path}/{at}", operations)
    for at in reversed(range(both, len(before) - tail)):
        operations.append({"op": "remove", "path": f"{path}/{at}"})
    for at in range(both, len(after) - tail):
        operations.append({"op": "add", "path": f"{path}/{at if tail else '-'}", "value": after[at]})


def _same(one: Any, other: Any) -> bool:
    """Equal in JSON, where true is not 1. The same keys in another order may be taken to differ."""
    return bool(one == other) and orjson.dumps(one) == orjson.dumps(other)


def _escaped(key: str) -> str:
    """RFC 6901 section 3."""
    return key.replace("~", "~0").replace("/", "~1")
