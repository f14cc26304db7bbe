"""Path templates of routes: ``/accounts/{AccountId}``, ``/accounts/**``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SEGMENTS_MAX: Final = 64

# RFC 3986 section 3.3, without percent-encoding: a path is compared after its unreserved characters are decoded, and
# encoded slashes and the like are refused before any route is looked at.
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]{0,63})\}")

_OTHER_PARAMETER = re.compile(r":([A-Za-z_][A-Za-z0-9_-]{0,63})|<(?:[a-z]+:)?([A-Za-z_][A-Za-z0-9_-]{0,63})>")
"""As other programs write them: ``:id``, ``<id>``, ``<int:id>``."""


@dataclass(frozen=True, slots=True)
class Template:
    """A path, segment by segment; None stands for a parameter. ``rest``: a final ``/**``, which matches the path
    before it and everything below."""

    segments: tuple[str | None, ...]
    rest: bool

    def matches(self, path: str) -> bool:
        """Whether an absolute path, as it stands in a request target without the query, belongs to this template."""
        parts = path[1:].split("/")
        if len(parts) != len(self.segments) and not (self.rest and len(parts) > len(self.segments)):
            return False
        return all(
            (want is None and part != "") or want == part for want, part in zip(self.segments, parts, strict=False)
        )

    def covers(self, other: Template) -> bool:
        """Whether every path of ``other`` is one of this template."""
        if other.rest and not self.rest:
            return False
        if len(other.segments) < len(self.segments) or (len(other.segments) > len(self.segments) and not self.rest):
            return False
        pairs = zip(self.segments, other.segments, strict=False)
        return all(mine == theirs or (mine is None and theirs != "") for mine, theirs in pairs)


def parse_template(path: str) -> Template:
    """Read ``/accounts/{AccountId}`` or ``/accounts/**``.

    Raises:
        ValueError: it is no such path; the message says which segment.
    """
    if not path.startswith("/") or len(path) > 2048:
        raise ValueError("should begin with / and have at most 2048 characters")
    parts = path[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    if len(parts) > SEGMENTS_MAX:
        raise ValueError(f"has more than {SEGMENTS_MAX} segments")
    segments: list[str | None] = []
    names: set[str] = set()
    for number, part in enumerate(parts, start=1):
        parameter = _PARAMETER.fullmatch(part)
        if parameter:
            if parameter[1] in names:
                raise ValueError(f"has the parameter {part} twice")
            names.add(parameter[1])
            segments.append(None)
        elif part == "" and number == len(parts) and not rest:
            segments.append("")  # a final slash is part of a path: /accounts and /accounts/ are two
        elif other := _OTHER_PARAMETER.fullmatch(part):
            raise ValueError(f"has the segment {part!r}; write a parameter as {{{other[1] or other[2]}}}")
        elif inside := _PARAMETER.search(part):
            raise ValueError(f"has the segment {part!r}; a parameter stands for a whole segment, as in {{{inside[1]}}}")
        elif part in ("", ".", "..", "*", "**") or _LITERAL.fullmatch(part) is None:
            raise ValueError(f"has the segment {part!r}, which is neither a name, nor a {{parameter}}, nor a final **")
        else:
            segments.append(part)
    return Template(tuple(segments), rest)
