"""Secrets from files: where a model has ``token`` and ``token_file``, the file's text becomes the token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from sidecar.config.document import Node
from sidecar.config.errors import ConfigError, Origin, Problem, dotted
from sidecar.config.fields import Model
from sidecar.config.schema import alternatives, is_model, item_type

SUFFIX: Final = "_file"

SECRET_BYTES_MAX: Final = 65_536

_Path = tuple[str | int, ...]


def with_secrets(model: type[BaseModel], root: Node) -> Node:
    """The tree with every ``*_file`` twin of a secret replaced by the secret. One newline at the end is not part of it.

    Raises:
        ConfigError: both twins are given, or a file cannot be read, is empty or too large.
    """
    problems: list[Problem] = []
    root = _visit(model, root, (), problems)
    if problems:
        raise ConfigError(problems)
    return root


def secrets_of(model: type[BaseModel]) -> Iterator[str]:
    """Names of the fields that are read from a file here.

    Only models of this package have any: metering reads its token's file itself, again and again, so that a token can
    change while it runs.
    """
    if not issubclass(model, Model):
        return
    for name, field in model.model_fields.items():
        if SecretStr in alternatives(field.annotation) and name + SUFFIX in model.model_fields:
            yield name


def _visit(annotation: Any, node: Node, path: _Path, problems: list[Problem]) -> Node:
    for each in alternatives(annotation):
        item = item_type(each)
        if item is not None and isinstance(node.content, tuple):
            items = tuple(_visit(item, below, (*path, i), problems) for i, below in enumerate(node.content))
            node = Node(node.origin, items, node.text, node.size)
        elif is_model(each) and isinstance(node.content, dict):
            content = dict(node.content)
            for name, field in each.model_fields.items():
                if name in content:
                    content[name] = _visit(field.annotation, content[name], (*path, name), problems)
            for name in secrets_of(each):
                _take_twin(content, name, path, problems)
            node = Node(node.origin, content, node.text, node.size)
    return node


def _take_twin(content: dict[str, Node], name: str, path: _Path, problems: list[Problem]) -> None:
    twin = content.get(name + SUFFIX)
    if twin is None or not isinstance(twin.content, str):
        return
    where = dotted((*path, name + SUFFIX))
    if name in content and content[name].content is not None:
        problems.append(
            Problem(twin.origin, where, f"is set, but {name} is set too ({content[name].origin}); set only one of them")
        )
        return
    try:
        secret = read_secret(Path(twin.content), twin.origin, where)
    except ConfigError as error:
        problems.extend(error.problems)
        return
    del content[name + SUFFIX]
    content[name] = Node(twin.origin, secret, secret)


def read_secret(path: Path, origin: Origin, key: str) -> str:
    """The text of a secret's file.

    Raises:
        ConfigError: it cannot be read, is empty, too large, or not UTF-8; ``origin`` and ``key`` say who named it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(SECRET_BYTES_MAX + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError([Problem(origin, key, f"{path}: {error.strerror}")]) from None
    except ValueError:  # bytes that are not UTF-8, or a path with a NUL
        raise ConfigError([Problem(origin, key, "is not the path of a text file")]) from None
    if len(raw) > SECRET_BYTES_MAX:
        raise ConfigError([Problem(origin, key, f"{path} is larger than {SECRET_BYTES_MAX} bytes")])
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError([Problem(origin, key, f"{path} is empty")])
    return text
