"""A tree and a model to a frozen value, or to errors that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sidecar.config.document import Node
from sidecar.config.errors import ConfigError, Origin, Problem, dotted
from sidecar.config.schema import known_keys

M = TypeVar("M", bound=BaseModel)

_Path = tuple[str | int, ...]

#: Keys whose values are never repeated in an error.
_SECRET: Final = re.compile(r"password|token|secret|key|valkey|url|credential", re.IGNORECASE)

_SHOWN_LENGTH_MAX = 60

_DECIMAL = re.compile(r"Decimal\('(.*)'\)")

#: pydantic's kinds of error to what a reader is told. Others keep pydantic's own text.
_EXPECTED: Final[dict[str, str]] = {
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "decimal_type": "should be a decimal number",
    "decimal_parsing": "should be a decimal number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text; put it in quotes",
    "path_type": "should be the path of a file, in quotes if it looks like a number",
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "missing": "is missing",
    "greater_than_equal": "should be at least {ge}",
    "greater_than": "should be more than {gt}",
    "less_than_equal": "should be at most {le}",
    "less_than": "should be less than {lt}",
    "string_too_short": "should have at least {min_length}",
    "string_too_long": "should have at most {max_length}",
    "too_short": "should have at least {min_length}",
    "too_long": "should have at most {max_length}",
}

#: Patterns of settings in words.
PATTERNS: Final = {
    r"^[a-z0-9]+(?:_[a-z0-9]+)*$": "should have lower-case letters, digits and single underscores",
    r"^[A-Za-z0-9_.-]{1,32}$": "should have 1 to 32 letters, digits, dots, hyphens and underscores",
    r"^[A-Za-z_][A-Za-z0-9_]{0,63}$": "should have at most 64 letters, digits and underscores, with no digit first",
    r"^\S{1,256}$": "should have 1 to 256 characters without spaces",
}

#: What a bound counts, one and several of it.
_COUNTED: Final = {
    "string_too_short": ("character", "characters"),
    "string_too_long": ("character", "characters"),
    "too_short": ("entry", "entries"),
    "too_long": ("entry", "entries"),
}

#: Errors that may come from YAML reading a number or a truth value where text was meant.
TEXT_WANTED: Final = frozenset({"string_type", "path_type", "literal_error", "value_error"})


def validate(model: type[M], root: Node) -> M:
    """Build ``model`` from the tree.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        return model.model_validate(root.data())
    except ValidationError as error:
        raise ConfigError(problems_of(error, model, root)) from None


def problems_of(error: ValidationError, model: type[BaseModel], root: Node) -> list[Problem]:
    """The problems that pydantic found, each with its place in the tree."""
    errors = error.errors(include_url=False)
    return [p for details in errors if not _follows(details, errors) for p in _translate(details, model, root)]


def _follows(details: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    """A list whose entries are all wrong counts as empty for pydantic; one report is enough."""
    location = details["loc"]
    return details["type"] == "too_short" and any(
        each["loc"][: len(location)] == location and len(each["loc"]) > len(location) for each in errors
    )


def locate(root: Node, path: _Path) -> tuple[Node, _Path]:
    """The node that an error's path leads to, or the nearest above it, and its key path without pydantic's tags."""
    node = root
    known: _Path = ()
    for part in path:
        below = node.child(part)
        if below is not None:
            node, known = below, (*known, part)
    return node, known


def _translate(details: ErrorDetails, model: type[BaseModel], root: Node) -> Iterator[Problem]:
    kind, location, context = details["type"], details["loc"], details.get("ctx", {})
    node, path = locate(root, location)
    if kind == "conflict":
        for below, message in context["problems"]:
            parts = tuple(int(part) if part.isdecimal() else part for part in below.split(".") if below)
            found, _ = locate(node, parts)
            yield Problem(found.origin, dotted((*path, *parts)), message)
    elif kind == "extra_forbidden":
        yield Problem(node.origin, dotted(path), _unknown(str(location[-1]), known_keys(model, location[:-1])))
    elif kind == "missing":
        yield Problem(node.origin, dotted((*path, location[-1])), "is missing")
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = context["discriminator"].strip("'")
        chosen = node.child(discriminator)
        expected = context.get("expected_tags", "")
        place = (*path, discriminator)
        message = f"should be one of {expected}{_shown(chosen.data(), place)}" if chosen else "is missing"
        yield Problem((chosen or node).origin, dotted(place), message)
    else:
        yield Problem(node.origin, dotted(path), _message(details, path))


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"is not a known key; did you mean {near[0]}?"
    return f"is not a known key; known are {', '.join(known)}" if known else "is not a known key"


def _message(details: ErrorDetails, path: _Path) -> str:
    kind = details["type"]
    # pydantic gives a bound that is a Decimal as the text of its repr.
    context = {
        name: _DECIMAL.sub(r"\1", value) if isinstance(value, str) else value
        for name, value in details.get("ctx", {}).items()
    }
    if kind == "value_error":
        return str(context["error"])
    if kind in _COUNTED:
        one, several = _COUNTED[kind]
        for bound in ("min_length", "max_length"):
            if bound in context:
                context[bound] = f"{context[bound]} {one if context[bound] == 1 else several}"
    if kind in ("literal_error", "enum"):
        message = f"should be {context['expected']}"
    elif kind in ("too_short", "too_long"):
        return _EXPECTED[kind].format(**context)
    elif kind == "string_pattern_mismatch":
        message = PATTERNS.get(context["pattern"], f"should match {context['pattern']}")
    elif kind in _EXPECTED:
        message = _EXPECTED[kind].format(**context)
    else:
        message = details["msg"][:1].lower() + details["msg"][1:]
    return message + _shown(details["input"], path)


def _shown(value: object, path: _Path) -> str:
    """The value that was found instead, where it helps and gives nothing away."""
    if any(_SECRET.search(part) for part in path if isinstance(part, str)):
        return ""
    if isinstance(value, bool) or value is None:
        return f", not {str(value).lower().replace('none', 'null')}"
    if isinstance(value, dict):
        return ", not a mapping"
    if isinstance(value, list):
        return ", not a list"
    shown = repr(value) if isinstance(value, str) else str(value)
    return f", not {shown}" if len(shown) <= _SHOWN_LENGTH_MAX else ""


Retry = Callable[[Origin], bool]
"""Whether a value from this place may be tried as the text it was written as."""


def validate_texts(model: type[M], root: Node, is_text: Retry) -> M:
    """As ``validate``; where text is wanted and a value of ``is_text`` is none, its text is tried.

    An environment variable has no quotes to say that ``0042`` is a password and not a number.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        return model.model_validate(root.data())
    except ValidationError as error:
        texts = root
        for details in error.errors(include_url=False):
            node, path = locate(root, details["loc"])
            if details["type"] in TEXT_WANTED and is_text(node.origin) and node.text != node.content:
                texts = replaced(texts, path, Node(node.origin, node.text, node.text))
        return validate(model, texts)


def replaced(root: Node, path: _Path, value: Node) -> Node:
    """The tree with the value at ``path`` replaced; the nodes on the way are copied, since aliases share them."""
    if not path:
        return value
    head, *rest = path
    below = root.child(head)
    assert below is not None, f"{dotted(path)} is in the tree"
    changed = replaced(below, tuple(rest), value)
    content: Any
    if isinstance(root.content, dict):
        content = {**root.content, head: changed}
    else:
        assert isinstance(root.content, tuple)
        assert isinstance(head, int)
        content = (*root.content[:head], changed, *root.content[head + 1 :])
    return Node(root.origin, content, root.text, root.size)
