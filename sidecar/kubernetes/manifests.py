"""Manifests as text, in and out: only what injection changes is written anew, with its comments and quotes kept.

A document that needs no change comes out byte for byte. Of one that does, the tree is edited in place
(ruamel.yaml's round trip), so that order, comments and styles stay; at the end it is read back and compared with what
injection asked for, since a manifest that was written wrongly is worse than none.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sidecar.kubernetes import names
from sidecar.kubernetes.injection import InjectionRefused, InjectionSettings, inject, wanted
from sidecar.kubernetes.pod_fields import plain
from sidecar.kubernetes.workloads import Workload, look, workloads

BYTES_MAX: Final = 16_777_216
DOCUMENTS_MAX: Final = 10_000
_MARKER: Final = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r\n]|$)", re.MULTILINE)
_SEQUENCE: Final = re.compile(r"^( *)(?:- *)*[\w.\"'/-]+:[ \t]*(?:#[^\n]*)?\n(?: *(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE)
"""A key and the first entry of its list, to see whether lists are indented."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A workload that cannot have the sidecar, or a document that cannot be read."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass
class Outcome:
    """``text`` has the sidecars. It is of no use if something was ``refused``."""

    text: str = ""
    injected: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def inject_text(text: str, settings: InjectionSettings, source: str) -> Outcome:
    """Injects every workload of a file that does not opt out. ``source``: its name, for messages. All that is wrong is
    in the outcome; nothing is raised."""
    outcome = Outcome()
    if len(text) > BYTES_MAX:
        outcome.refused.append(Refused(source, f"is larger than {BYTES_MAX} characters"))
        return outcome
    pieces = list(_documents(text))
    if len(pieces) > DOCUMENTS_MAX:
        outcome.refused.append(Refused(source, f"has more than {DOCUMENTS_MAX} documents"))
        return outcome
    written: list[str] = []
    number = 0
    for marker, body in pieces:
        if body.strip():
            number += 1
        written.append(marker + _document(body, settings, f"{source}: document {number}", outcome))
    outcome.text = "".join(written)
    return outcome


def _documents(text: str) -> Iterator[tuple[str, str]]:
    """Markers and what follows each, whose concatenation is the text."""
    at, marker = 0, ""
    for found in _MARKER.finditer(text):
        yield marker, text[at : found.start()]
        marker, at = found[0], found.end()
    yield marker, text[at:]


def _document(body: str, settings: InjectionSettings, where: str, outcome: Outcome) -> str:
    if not body.strip() or all(line.lstrip().startswith(("#", "%")) for line in body.splitlines() if line.strip()):
        return body
    ends = "\r\n" if "\r\n" in body else "\n"
    lines = body.replace("\r\n", "\n")
    as_json = lines.lstrip().startswith("{")
    try:
        tree = json.loads(lines, object_pairs_hook=_once) if as_json else _yaml(lines).load(lines)
        document = plain(tree)
    except (ValueError, YAMLError, RecursionError, InjectionRefused) as error:
        outcome.refused.append(Refused(where, _reason(error)))
        return body
    found = [_injected(document, each, settings, where, outcome) for each in workloads(document)]
    changes = [change for change in found if change is not None]
    if not changes:
        return body
    expected = document
    for path, pod in changes:
        expected = _with(expected, path, pod)
    try:
        made = _json_text(lines, expected) if as_json else _yaml_text(lines, tree, expected)
    except (YAMLError, _RoundTripError) as error:
        outcome.refused.append(Refused(where, f"cannot be written with its style kept: {_reason(error)}"))
        return body
    return made.replace("\n", ends)


def _injected(
    document: Any, workload: Workload, settings: InjectionSettings, where: str, outcome: Outcome
) -> tuple[tuple[str | int, ...], dict[str, Any]] | None:
    """The pod with the sidecar, and where it belongs; None if nothing changes."""
    here = f"{where} ({workload.title})"
    pod = look(document, workload.path)
    try:
        if not isinstance(pod, dict):
            raise InjectionRefused(f"{'.'.join(map(str, workload.path))} should be a mapping")
        metadata = pod.get("metadata") or {}
        if isinstance(metadata, dict) and not wanted(metadata, _labels(document, workload), default=True):
            return None
        result = inject(pod, settings, job=workload.job)
    except InjectionRefused as error:
        outcome.refused.append(Refused(here, str(error)))
        return None
    outcome.warnings += [f"{here}: {warning}" for warning in result.warnings]
    if not result.changed:
        return None
    outcome.injected.append(here)
    return workload.path, result.pod


def _labels(document: Any, workload: Workload) -> dict[str, str]:
    """The label on a workload itself counts where its template has none: that is where people put it."""
    depth = next((at for at, part in enumerate(workload.path) if part in ("spec", "template")), len(workload.path))
    if depth == len(workload.path):
        return {}
    metadata = look(document, (*workload.path[:depth], "metadata"))
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return {names.INJECT: labels[names.INJECT]} if isinstance(labels, dict) and names.INJECT in labels else {}


def _with(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    part, *below = path
    if isinstance(document, list):
        assert isinstance(part, int)
        return [_with(each, tuple(below), value) if at == part else each for at, each in enumerate(document)]
    return {key: _with(each, tuple(below), value) if key == part else each for key, each in document.items()}


# YAML


class _RoundTripError(Exception):
    """What was written is not what was meant."""


def _yaml(lines: str) -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 1_000_000
    yaml.allow_duplicate_keys = False
    found = _SEQUENCE.search(lines)
    if found is not None and len(found[2]) > len(found[1]):
        yaml.indent(mapping=2, sequence=4, offset=2)
    else:
        yaml.indent(mapping=2, sequence=2, offset=0)
    return yaml


def _yaml_text(lines: str, tree: Any, expected: Any) -> str:
    shared = Counter[int]()
    _count(tree, shared)
    _graft(tree, expected, shared)
    out = io.StringIO()
    _yaml(lines).dump(tree, out)
    made = out.getvalue()
    if lines.startswith("\n"):  # what followed the marker on its line stays there
        made = "\n" + made.lstrip("\n")
    made = _spaced_as(lines, made.rstrip("\n") + lines[len(lines.rstrip("\n")) :])
    if plain(YAML(typ="safe", pure=True).load(made)) != expected:
        raise _RoundTripError("it would not mean what it should")
    return made


def _spaced_as(before: str, made: str) -> str:
    """``made`` with the lines of ``before`` wherever they differ in nothing but spaces around brackets and commas."""
    old, new = before.splitlines(keepends=True), made.splitlines(keepends=True)
    matcher = difflib.SequenceMatcher(
        None, [_bare(line) for line in old], [_bare(line) for line in new], autojunk=False
    )
    for at, to, count in matcher.get_matching_blocks():
        new[to : to + count] = old[at : at + count]
    return "".join(new)


def _bare(line: str) -> str:
    return re.sub(r" *([{}\[\],]) *", r"\1", line.rstrip())


def _count(node: Any, shared: Counter[int]) -> None:
    if isinstance(node, dict | list):
        shared[id(node)] += 1
        if shared[id(node)] == 1:
            for each in node.values() if isinstance(node, dict) else node:
                _count(each, shared)


def _graft(tree: Any, wanted: Any, shared: Counter[int]) -> None:
    """Makes ``tree`` mean ``wanted``, touching only what differs. What several places share (an anchor and its aliases)
    is not changed for all of them: the place that differs gets a copy."""
    keys: Any
    if isinstance(tree, dict):
        for key in [key for key in tree if key not in wanted]:
            del tree[key]
        keys = list(wanted)
    else:
        del tree[len(wanted) :]
        keys = range(len(wanted))
    for key in keys:
        value = wanted[key]
        absent = key not in tree if isinstance(tree, dict) else key >= len(tree)
        if absent:
            if isinstance(tree, dict):
                tree[key] = value
            else:
                tree.append(value)
            continue
        old = tree[key]
        if plain(old) == value and type(plain(old)) is type(value):
            continue
        alike = isinstance(old, dict) == isinstance(value, dict) and isinstance(old, list) == isinstance(value, list)
        if alike and isinstance(old, dict | list) and shared[id(old)] <= 1:
            _graft(old, value, shared)
        else:
            tree[key] = value


# JSON


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return found


def _json_text(lines: str, expected: Any) -> str:
    indented = re.search(r"\{\n([ \t]+)", lines)
    indent = indented[1] if indented else None
    separators = None if indent or ": " in lines else (",", ":")
    before = lines[: len(lines) - len(lines.lstrip())]
    after = lines[len(lines.rstrip()) :]
    return before + json.dumps(expected, indent=indent, separators=separators, ensure_ascii=False) + after


def _reason(error: Exception) -> str:
    """In one line, and without what ruamel.yaml advises its programmers."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if problem and mark is not None:
        return f"line {mark.line + 1} of it, column {mark.column + 1}: {problem}"
    return " ".join(str(error).split())[:300]
