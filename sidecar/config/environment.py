"""``SIDECAR_…`` environment variables laid over the file's tree.

``SIDECAR_UPSTREAM__CONNECT_TIMEOUT_MS=500`` sets ``upstream.connect_timeout_ms``: two underscores lead one level down,
a number leads into a list. Lists and mappings are written as YAML or JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from sidecar.config.document import Node, compose
from sidecar.config.errors import ConfigError, Origin, Problem, dotted
from sidecar.config.scalars import resolve
from sidecar.config.validation import replaced

PREFIX: Final = "SIDECAR_"
SEPARATOR: Final = "__"

VALUE_BYTES_MAX: Final = 131_072
"""What Linux lets one variable be."""

_OF_THE_COMMAND_LINE: Final = "SIDECAR_CONFIG"
_SERVICE_LINK: Final = re.compile(
    r"SIDECAR_(?:[A-Z0-9_]*_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""What Kubernetes puts into every pod of a namespace with a Service called ``sidecar`` or ``sidecar-…``
(``SIDECAR_CACHE_SERVICE_HOST``, ``SIDECAR_CACHE_PORT_6379_TCP_ADDR``); kubernetes ``pkg/kubelet/envvars``."""
_SERVICE_LINK_PORT: Final = re.compile(r"SIDECAR_(?:[A-Z0-9_]*_)?PORT")
_LINKED: Final = re.compile(r"(?:tcp|udp|sctp)://\S+", re.IGNORECASE)
"""The value of ``SIDECAR_CACHE_PORT``. Settings are named like that too, and none has such a value."""

_Path = tuple[str | int, ...]


def variable(path: str) -> str:
    """The name of the variable that sets a dotted key path."""
    return PREFIX + path.upper().replace(".", SEPARATOR)


def overlay(root: Node, environ: Mapping[str, str]) -> Node:
    """The tree with every set variable applied. An empty variable counts as not set; ``null`` clears a value.

    Raises:
        ConfigError: a variable leads into a scalar, past a list's end, or holds a list or mapping that is not YAML.
    """
    problems: list[Problem] = []
    # Shorter paths first: SIDECAR_ROUTES may give the list that SIDECAR_ROUTES__0__UNITS then changes.
    for name in sorted(environ, key=lambda each: (each.count(SEPARATOR), each)):
        value = environ[name]
        if not name.startswith(PREFIX) or not value or name == _OF_THE_COMMAND_LINE or _is_service_link(name, value):
            continue
        try:
            node = parse_value(value, name)
            root = _set(root, _path_of(name), 0, node)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return root


def _is_service_link(name: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(name):
        return True
    return _SERVICE_LINK_PORT.fullmatch(name) is not None and _LINKED.fullmatch(value) is not None


def parse_value(text: str, name: str) -> Node:
    """What a variable's text means: a list or mapping, a quoted text, else a scalar.

    Text that is none of these stays as it is, ``#`` and ``: `` included, since that is how a password may look.

    Raises:
        ConfigError: it begins like a list, a mapping or a quoted text and is none; too long.
    """
    origin = Origin(name)
    if len(text) > VALUE_BYTES_MAX:
        raise ConfigError([Problem(origin, "", f"is longer than {VALUE_BYTES_MAX} characters")])
    if text.lstrip().startswith(("[", "{", "- ", '"', "'")):
        try:
            return _moved(compose(text, name), origin, text)
        except ConfigError as error:
            raise ConfigError([Problem(origin, each.path, each.message) for each in error.problems]) from None
    return Node(origin, resolve(text), text)


def _moved(node: Node, origin: Origin, text: str) -> Node:
    # A line within a variable is of no use; its name is.
    content = node.content
    if isinstance(content, dict):
        content = {key: _moved(each, origin, each.text) for key, each in content.items()}
    elif isinstance(content, tuple):
        content = tuple(_moved(each, origin, each.text) for each in content)
    return Node(origin, content, text, node.size)


def _path_of(name: str) -> _Path:
    parts = name.removeprefix(PREFIX).lower().split(SEPARATOR)
    return tuple(int(part) if part.isdecimal() and len(part) < 6 else part for part in parts)


def _set(node: Node, path: _Path, depth: int, value: Node) -> Node:
    if depth == len(path):
        return value
    part, so_far = path[depth], dotted(path[:depth])
    content = node.content
    if content is None:
        content = {}
    if isinstance(content, dict):
        key = str(part)
        below = content.get(key, Node(value.origin, None))
        return Node(node.origin, {**content, key: _set(below, path, depth + 1, value)}, node.text, node.size)
    if isinstance(content, tuple):
        if not isinstance(part, int) or part >= len(content):
            message = f"{so_far} is a list of {len(content)}: it has no entry {part}"
            raise ConfigError([Problem(value.origin, "", message)])
        return replaced(node, (part,), _set(content[part], path, depth + 1, value))
    raise ConfigError([Problem(value.origin, "", f"{so_far} is a single value and has no keys below it")])
