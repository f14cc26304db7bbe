"""Watermarks: tiny events that tell what OpenMeter shows by now.

OpenMeter accepts events long before it counts them: its sink may stand still for hours. What it accepts becomes visible
in the order of acceptance (for one subject at least: Kafka keeps the order of a key). So each publisher sends a
watermark for each hour and partition. Once it is visible, what was accepted before it is visible, or lost.

A watermark is a usage event of a subject and a metric of its own, so that every meter has it and no account does. Its
time is the beginning of its hour, which is what it covers: it is sent afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson

from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.events import EventAttributes
from sidecar.valkey.topology import Client

METRIC: Final = "quota_sidecar_watermark"
MARGIN_MS: Final = 60_000
"""How long before a watermark something must have been accepted: OpenMeter's servers accept for each other, and each
hands on what it has accepted when it can."""


class Row(Protocol):
    """``sidecar.metering.openmeter.query_rows.UsageRow``."""

    @property
    def subject(self) -> str: ...
    @property
    def window_start_ms(self) -> int: ...
    @property
    def units(self) -> int: ...


async def ledger_name(client: Client, keys: Keys) -> str | None:
    """What tells a ledger from others that share an OpenMeter: the random part of its generation. None: there is no
    ledger yet.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    generation: Any = await client.hget(keys.meta(0), "generation")
    return generation.decode("ascii", "replace").partition(":")[0] if generation else None


def subject_of(ledger: str, partition: int) -> str:
    """``ledger``: what tells this ledger from others that share an OpenMeter."""
    return f"quota-sidecar-watermark.{ledger}.{partition:02d}"


def watermark_events(ledger: str, partitions: int, hour: int, attributes: EventAttributes) -> list[bytes]:
    """The CloudEvents of an hour, counted from 1970, one for each partition. Whoever sends them again changes nothing:
    OpenMeter counts their ids once, and whether it counts them at all is all that matters."""
    time = f"{datetime.fromtimestamp(hour * HOUR_MS // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    found = []
    for partition in range(partitions):
        subject = subject_of(ledger, partition)
        event = {
            "specversion": "1.0", "id": f"{subject}.{hour}", "source": attributes.source, "type": attributes.type,
            "subject": subject, "time": time, "data": {"metric": METRIC, "units": 1},
        }  # fmt: skip
        found.append(orjson.dumps(event))
    return found


def covered_until_ms(ledger: str, partitions: int, rows: Iterable[Row]) -> int | None:
    """All that was accepted before this instant is visible, or lost. None: nothing is known to be.

    ``rows``: of the metric of watermarks, hour by hour.
    """
    newest: dict[str, int] = {}
    for row in rows:
        if row.units > 0:
            newest[row.subject] = max(newest.get(row.subject, 0), row.window_start_ms)
    subjects: Sequence[str] = [subject_of(ledger, partition) for partition in range(partitions)]
    if not all(subject in newest for subject in subjects):
        return None
    return min(newest[subject] for subject in subjects) - MARGIN_MS
