"""Reads the recordings. See ``README.md`` beside this module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class RecordedAnswer:
    """``text`` is the body as JSON."""

    name: str
    path: str
    text: str

    @property
    def body(self) -> Any:
        """Decimals are ``Decimal``, as in the client."""
        return json.loads(self.text, parse_float=Decimal)


@cache
def answers() -> tuple[RecordedAnswer, ...]:
    rows = [json.loads(line) for line in (_HERE / "answers.jsonl").read_text().splitlines()]
    return tuple(RecordedAnswer(row["name"], row["path"], json.dumps(row["body"])) for row in rows)


@cache
def webhooks() -> tuple[bytes, ...]:
    return tuple((_HERE / "webhooks.jsonl").read_bytes().splitlines())
