"""Names of header fields that are known by their whole or by their beginning, in every spelling."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.gateway.http1.grammar import TOKEN, fold

__all__ = ["NO_PATTERNS", "NamePatterns"]


class NamePatterns:
    """``x-real-ip`` stands for itself, ``x-forwarded-*`` for every name that begins so.

    Raises:
        ValueError: one is no field name with an asterisk or without.
    """

    def __init__(self, patterns: Iterable[bytes] = ()) -> None:
        whole: set[bytes] = set()
        beginnings: set[bytes] = set()
        for pattern in patterns:
            name = pattern.removesuffix(b"*")
            if not TOKEN.fullmatch(name) or b"*" in name:
                raise ValueError(f"{pattern!r} is no name of a header field, nor the beginning of one with * behind it")
            (whole if name == pattern else beginnings).add(fold(name))
        self.whole = frozenset(whole)
        #: Without the asterisk.
        self.beginnings = tuple(sorted(beginnings))

    def match(self, folded: bytes) -> bool:
        """Whether a name is one of these; ``folded`` is what `grammar.fold` made of it."""
        return folded in self.whole or folded.startswith(self.beginnings)


NO_PATTERNS = NamePatterns()
