"""Numbers with their nouns."""

from __future__ import annotations


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 account``, ``2 accounts``, ``2 entries`` (``count(2, "entry", "entries")``)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
