"""What an unquoted word means: YAML 1.2's core schema (section 10.3.2), not YAML 1.1's.

In YAML 1.1 ``off``, ``no`` and ``12:30`` are a boolean, a boolean and the number 750; here they are text. Numbers
with a fraction become ``Decimal`` from their digits, so that a price never passes through a float.
"""

from __future__ import annotations

import re
from decimal import Decimal

Scalar = str | int | bool | Decimal | None

_WORDS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")

#: Longer digit strings are text: int() of a megabyte of digits takes minutes, and nothing here counts that far.
_NUMBER_LENGTH_MAX = 64


def resolve(text: str) -> Scalar:
    """Answer the value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _NUMBER_LENGTH_MAX:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return Decimal(text)
    return text
