"""What a model's fields are, found by key path: for the suggestions in errors and for the reference."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_SEQUENCES = (tuple, list, frozenset, set)


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, without ``Annotated`` and with unions taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from alternatives(argument)
    else:
        yield annotation


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def item_type(annotation: Any) -> Any | None:
    """The type of a sequence's items; None if it is no sequence."""
    if get_origin(annotation) in _SEQUENCES:
        return get_args(annotation)[0]
    return None


def literals(annotation: Any) -> tuple[Any, ...]:
    """The values that a ``Literal`` admits, also if it is one among several types."""
    return tuple(v for each in alternatives(annotation) if get_origin(each) is Literal for v in get_args(each))


def known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that a mapping at ``path`` may have, [] if there is no model there.

    ``path`` may hold the tags that pydantic inserts where a union was decided.
    """
    candidates: list[Any] = [model]
    for part in path:
        below = [found for candidate in candidates for found in _step(candidate, part)]
        if not below:
            # A tag: it narrows the choice and leads nowhere. One that no model knows is the name of a validator.
            below = [each for each in candidates if is_model(each) and _has_tag(each, part)] or candidates
        candidates = below
    return sorted({name for each in candidates if is_model(each) for name in each.model_fields})


def _step(candidate: Any, part: str | int) -> Iterator[Any]:
    if is_model(candidate):
        field = candidate.model_fields.get(part)
        if field is not None:
            yield from alternatives(field.annotation)
    elif isinstance(part, int):
        item = item_type(candidate)
        if item is not None:
            yield from alternatives(item)
    elif get_origin(candidate) is dict:
        yield from alternatives(get_args(candidate)[1])


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    return any(literals(field.annotation) == (tag,) for field in model.model_fields.values())
