"""YAML text to a tree that remembers where each value was written.

It is composed from the parser's events instead of loaded, for three reasons: positions, duplicate keys (which loaders
drop silently) and limits (which loaders lack: a few aliases of aliases make a billion nodes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

import yaml

from sidecar.config.errors import ConfigError, Origin, Problem, dotted
from sidecar.config.scalars import Scalar, resolve

BYTES_MAX: Final = 1_048_576
"""A gateway's configuration is a few KB; a megabyte is a wrong file."""

DEPTH_MAX: Final = 32
NODES_MAX: Final = 1_000_000

_Path = tuple[str | int, ...]
_TAB_INDENT: Final = re.compile(r" *\t\s*\S")

# libyaml's parser is some ten times faster; the pure one gives the same events.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. ``text`` is the scalar as written; ``size`` counts the node and all below it."""

    origin: Origin
    content: Scalar | tuple[Node, ...] | dict[str, Node]
    text: str = ""
    size: int = 1

    def child(self, part: str | int) -> Node | None:
        """The value under a key or at an index; None if there is none."""
        if isinstance(self.content, dict):
            return self.content.get(part) if isinstance(part, str) else None
        if isinstance(self.content, tuple) and isinstance(part, int) and part < len(self.content):
            return self.content[part]
        return None

    def data(self) -> object:
        """The plain value: dict, list, str, int, bool, Decimal or None."""
        if isinstance(self.content, dict):
            return {key: node.data() for key, node in self.content.items()}
        if isinstance(self.content, tuple):
            return [node.data() for node in self.content]
        return self.content


def compose(text: str | bytes, source: str, *, bytes_max: int = BYTES_MAX) -> Node:
    """Read one YAML document; an empty one is an empty mapping. ``source`` is what errors call it.

    Raises:
        ConfigError: not UTF-8, not YAML, too large or too deep, several documents, duplicate keys, tags.
    """
    start = Origin(source, 1)
    if len(text) > bytes_max:
        raise ConfigError([Problem(start, "", f"is larger than {bytes_max} bytes")])
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(Origin(source, line), "", "is not UTF-8")]) from None
    composer = _Composer(source)
    try:
        root = composer.document(yaml.parse(decoded, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else 1
        tabbed = _tab_indented(decoded, line)
        message = "is indented with a tab: give YAML spaces, not tabs" if tabbed else f"is not YAML: {what}"
        raise ConfigError([*composer.problems, Problem(Origin(source, tabbed or line), "", message)]) from None
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise ConfigError([Problem(Origin(source, line), "", f"is not YAML: {error.reason}")]) from None
    if composer.problems:
        raise ConfigError(composer.problems)
    if root is None or root.content is None:
        return Node(start, {})
    return root


def _tab_indented(text: str, line_max: int) -> int | None:
    """The first line up to ``line_max`` that a tab indents. The parser's own message does not say "tab"."""
    lines = text.split("\n")[:line_max]
    return next((number for number, line in enumerate(lines, start=1) if _TAB_INDENT.match(line)), None)


class _Composer:
    def __init__(self, source: str) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._anchors: dict[str, Node] = {}

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail(event, (), "has a second document; give one document only")
                root = self._node(next(events), events, ())
        return root

    def _origin(self, event: yaml.Event) -> Origin:
        return Origin(self._source, event.start_mark.line + 1 if event.start_mark else None)

    def _fail(self, event: yaml.Event, path: _Path, message: str) -> NoReturn:
        # What follows can no longer be understood, so this ends the reading; problems found before are kept.
        raise ConfigError([*self.problems, Problem(self._origin(event), dotted(path), message)])

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: _Path) -> Node:
        if len(path) > DEPTH_MAX:
            self._fail(event, path[:3], f"is nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent):
            target = self._anchors.get(event.anchor or "")
            if target is None:
                self._fail(event, path, f"*{event.anchor} refers to no complete anchor above it")
            return Node(self._origin(event), target.content, target.text, target.size)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, events, path)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            node = self._mapping(event, events, path)
        if node.size > NODES_MAX:
            self._fail(event, path[:3], f"holds more than {NODES_MAX} values (aliases count in full)")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _scalar(self, event: yaml.ScalarEvent, path: _Path) -> Node:
        text: str = event.value
        if event.tag not in (None, "tag:yaml.org,2002:str"):
            self._tagged(event, path)
        plain = event.style in (None, "") and event.tag is None
        return Node(self._origin(event), resolve(text) if plain else text, text)

    def _tagged(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, path: _Path) -> None:
        self.problems.append(
            Problem(self._origin(event), dotted(path), f"has the tag {event.tag}; YAML tags are not allowed")
        )

    def _sequence(self, event: yaml.SequenceStartEvent, events: Iterator[yaml.Event], path: _Path) -> Node:
        if event.tag is not None:
            self._tagged(event, path)
        items: list[Node] = []
        size = 1
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(self._node(item, events, (*path, len(items))))
            size += items[-1].size
        return Node(self._origin(event), tuple(items), size=size)

    def _mapping(self, event: yaml.MappingStartEvent, events: Iterator[yaml.Event], path: _Path) -> Node:
        if event.tag is not None:
            self._tagged(event, path)
        content: dict[str, Node] = {}
        size = 1
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                self._fail(key, path, "has a key that is not text")
            name, origin = key.value, self._origin(key)
            value = self._node(next(events), events, (*path, name))
            size += value.size
            if name == "<<":
                message = "merge keys (<<) are not allowed; use an alias for the whole value"
                self.problems.append(Problem(origin, dotted(path), message))
            elif name in content:
                message = f"is set twice, first in line {content[name].origin.line}"
                self.problems.append(Problem(origin, dotted((*path, name)), message))
            else:
                # The place of a value is that of its key: a block that begins a line below is looked for at its name.
                content[name] = Node(origin, value.content, value.text, value.size)
        return Node(self._origin(event), content, size=size)
