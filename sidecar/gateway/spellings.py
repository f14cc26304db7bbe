"""The ways in which servers read one path. Each way is a path of its own, for which a route is looked up.

Routers ignore letter case (Express, ASP.NET), drop a final slash (Express, Rails), cut off an extension (Rails,
Spring), decode a second time behind a proxy, cut off parameters after they decoded. They do so in any combination, so
the readings are the closure of the single steps.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from sidecar.gateway.http1.grammar import ProtocolError
from sidecar.gateway.http1.target import cut_paths

SPELLINGS_MAX: Final = 40
"""An honest path has fewer. What has more was made to have them."""

SHORT: Final = 128
SHORT_ESCAPES: Final = 16
"""A path of no more characters and escapes costs little, and is read as it is."""
_SLACK: Final = 24
"""Characters that servers drop from the end of a name, of which more than these make no difference."""
_ESCAPED_LETTER: Final = 9
"""Characters of the longest escape that servers may take for a letter: ``%E2%84%AA``."""
_ANY: Final = "x"
"""Stands for what no template has as a literal."""
_CUT_MARK: Final = re.compile(r"[;?#]|%3B|%3F|%23")
_END_MARK: Final = re.compile(r"[?#]|%3F|%23")
_PARAMETER_MARKS: Final = (";", "%3B")

EXACT: Final = "exact"
CASE: Final = "letter case"
SLASH: Final = "final slash"
EXTENSION: Final = "extension"
CUT: Final = "cut off"
TRIMMED: Final = "dots and spaces at the end"
DECODED: Final = "decoded"

_LOWER_ESCAPE = re.compile(r"%[0-9a-f]{2}")
_TRAILING = re.compile(r"(?:\.| |%20)+\Z")
_ONE_READING = re.compile(r"(?:/[a-z0-9\-_~!$&'()*+,=:@.]+)+")


@dataclass(frozen=True, slots=True)
class Spelling:
    """One reading of a path.

    Attributes:
        path: what is looked up.
        steps: what leads from the canonical path to it; empty for the canonical path itself.
        decides: where no route takes this reading, the default route does. Otherwise the reading counts only where a
            route takes it.
    """

    path: str
    steps: tuple[str, ...] = ()
    decides: bool = True


def has_one_spelling(path: str, extensions: Sequence[str]) -> bool:
    """Whether every step leaves the path as it is. Most paths are so, and this is all they cost."""
    return _ONE_READING.fullmatch(path) is not None and not path.endswith(".") and not (extensions and "." in path)


def spellings(path: str, extensions: Sequence[str] = ()) -> list[Spelling]:
    """All readings of a canonical path, itself first.

    Args:
        path: see ``routing_path``.
        extensions: in lower case, without their dot.

    Raises:
        ProtocolError: 400, it has more than `SPELLINGS_MAX`.
    """
    found = {path: Spelling(path)}
    waiting = [found[path]]
    for spelling in waiting:
        for step, other, decides in _steps(spelling.path, extensions):
            if other in found:
                continue
            if len(found) >= SPELLINGS_MAX:
                raise ProtocolError(400, "The path can be read in too many ways.")
            steps = spelling.steps if step in spelling.steps else (*spelling.steps, step)
            found[other] = Spelling(other, steps, spelling.decides and decides)
            waiting.append(found[other])
    return waiting


class Abridgement:
    """Shortens what is long in a path without a change to the routes that its readings can take: segments below those
    by which templates differ, and what no reading can make a literal of a template. Else a stranger could spend
    milliseconds of the gateway with one long path of odd characters.

    Args:
        literals: of all templates.
        depth: segments of the longest template.
        extensions: as for `spellings`.
    """

    def __init__(self, literals: Iterable[str], depth: int, extensions: Sequence[str]) -> None:
        self._depth = depth
        # Of a name that is all dots and spaces, nothing may be left: then the slash before it is the path's last.
        self._literals = tuple({"", *map(_plainest, literals)})
        self._longest = max(map(len, self._literals), default=0) * _ESCAPED_LETTER
        endings = [re.escape(f".{each}") for each in extensions]
        self._end = re.compile(f"(?:{'|'.join([*endings, '[. ]'])})*")

    def __call__(self, text: str) -> str:
        if len(text) <= SHORT and text.count("%") <= SHORT_ESCAPES:
            return text
        parts = text.split("/", self._depth + 3)
        if len(parts) == self._depth + 4:
            parts[-1] = _ANY + "/" * text.endswith("/")
        return "/".join(map(self._segment, parts))

    def _segment(self, part: str) -> str:
        match = _CUT_MARK.search(part)
        if match is None:
            return self._name(part)
        further = _END_MARK.search(part, match.end()) if match[0] in _PARAMETER_MARKS else None
        rest = further[0] + _ANY if further is not None else ""  # it ends the path, and a parameter only its segment
        return self._name(part[: match.start()]) + match[0] + _ANY + rest

    def _name(self, name: str) -> str:
        """What comes before a mark at which servers cut off."""
        if len(name) <= 1:
            return name
        plain = _plainest(_whole_escapes(name[: self._longest + SHORT]))
        if not any(plain.startswith(each) and self._end.fullmatch(plain, len(each)) for each in self._literals):
            return _ANY
        return _whole_escapes(name[: self._longest + _SLACK])


def _whole_escapes(text: str) -> str:
    cut = text.rfind("%", len(text) - 2)
    return text if cut < 0 else text[:cut]


def _plainest(text: str) -> str:
    """What all steps together make of letters: readings of one text do not differ in it."""
    for _ in range(3):
        if "%" not in text:
            break
        text = unquote(text, errors="replace")
    letters = (c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) not in ("Mn", "Cf"))
    return "".join(letters).casefold().replace("\u0131", "i")


def _steps(path: str, extensions: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Step, path after it, and whether the default route takes what no other does."""
    yield CASE, fold(path), False
    if not path.isascii():
        for folded in _unicode_folds(path):
            yield CASE, folded, False
    if path.endswith("/") and len(path) > 1:
        yield SLASH, path[:-1], False
    for extension in extensions:
        if path.lower().endswith(f".{extension}"):
            stem = path[: -len(extension) - 1]
            yield EXTENSION, stem, not stem.endswith("/")
    if path.endswith((".", " ", "%20")):  # Windows ignores them in names of files
        yield TRIMMED, _TRAILING.sub("", path), False
    for cut in cut_paths(path.encode()):
        yield CUT, cut.decode(), True
    if "%" in path:
        yield DECODED, unquote(path, errors="replace"), False


def fold(path: str) -> str:
    """Letters in lower case, escapes in upper case."""
    folded = path.lower()
    return _LOWER_ESCAPE.sub(lambda match: match[0].upper(), folded) if "%" in folded else folded


def _unicode_folds(path: str) -> Iterator[str]:
    """As languages ignore case beyond ASCII: KELVIN SIGN becomes k, LONG S becomes s, DOTLESS I becomes i."""
    wide = unicodedata.normalize("NFKC", path)
    for folded in (path.upper().lower(), path.casefold(), wide, wide.casefold(), wide.upper().lower()):
        yield folded
        yield folded.replace("\u0307", "").replace("\u0131", "i")  # lower() gives İ a dot above, ı no upper case
    letters = (c for c in unicodedata.normalize("NFKD", path) if unicodedata.category(c) not in ("Mn", "Cf"))
    yield "".join(letters).casefold()  # without accents, soft hyphens and the like
