"""Counts requests to Lago."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class LagoMetrics:
    """Counts since the start.

    ``requests``: sent, by endpoint such as ``GET /wallets/{id}``; ``failures`` of those by ``LagoError.kind``.
    ``retries``: requests that were sent again. ``pauses``: how often Lago asked for one (429). ``throttled_s``: seconds
    for which requests were held back, by the pace or by a pause.
    """

    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    pauses: int = 0
    throttled_s: float = 0.0
