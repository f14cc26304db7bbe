"""Makes dead letters of events that OpenMeter refuses for good, and of entries that nobody can read.

A dead letter carries the fields of an outbox entry, cut to the one event, so that putting it back is appending it
to the outbox again: the event keeps its id and is counted once. Beside them stand, all beginning with ``dead-``:
``reason``, ``event`` (the CloudEvent as it was sent, if it got that far), and, added by the script, ``at-ms`` and
``entry``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from sidecar.metering.outbox.events import position_of, single_event

PREFIX: Final = b"dead-"
REASON, EVENT, AT_MS, ENTRY = b"dead-reason", b"dead-event", b"dead-at-ms", b"dead-entry"

FIELDS_MAX = 64
"""No gateway writes an entry of more than a handful of fields; Lua cannot pass on thousands."""

DeadLetterFields = dict[bytes, bytes]


def dead_letter_of_entry(fields: Mapping[bytes, bytes], reason: str) -> DeadLetterFields:
    """An entry that cannot be decoded, as it is."""
    kept = [(name, value) for name, value in fields.items() if not name.startswith(PREFIX)][:FIELDS_MAX]
    if len(kept) < len(fields):
        reason += f" ({len(fields) - len(kept)} fields left out)"
    return {**dict(kept), REASON: reason.encode("utf-8", "replace")}


def dead_letter_of_position(fields: Mapping[bytes, bytes], position: int, reason: str) -> DeadLetterFields:
    """An event that cannot be sent."""
    return dead_letter_of_entry(single_event(fields, position), reason)


def dead_letter_of_event(fields: Mapping[bytes, bytes], body: bytes, reason: str) -> DeadLetterFields:
    """An event that was sent, as ``body``, and refused."""
    position = position_of(orjson.loads(body)["id"], fields)
    return {**dead_letter_of_position(fields, position, reason), EVENT: body}
