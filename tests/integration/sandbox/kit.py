"""The time at which the OpenMeter stand-in of these tests stands still, events around it, and a cut body."""

from __future__ import annotations

from datetime import UTC, datetime

import aiohttp

#: 2025-06-01T10:30:00Z
NOW_S = 1_748_773_800


def instant(offset_s: int = 0) -> str:
    return datetime.fromtimestamp(NOW_S + offset_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def call(id: str, *, subject: str = "tpp-1", offset_s: int = 0, units: int = 1, **data: object) -> dict[str, object]:
    """A usage event as the gateway writes it."""
    return {
        "specversion": "1.0",
        "id": id,
        "source": "open-banking-api",
        "type": "api.call",
        "subject": subject,
        "time": instant(offset_s),
        "data": {"endpoint": "/accounts", "method": "GET", "status_code": 200, "units": units, **data},
    }


async def read_until_cut(answer: aiohttp.ClientResponse) -> bytes:
    """What arrived of a body before its connection was cut, which it must be."""
    received = b""
    try:
        async for chunk in answer.content.iter_any():
            received += chunk
    except aiohttp.ClientPayloadError:
        return received
    raise AssertionError("the body came to an end of its own")
