"""Faults for ingest requests, scripted one by one or drawn by chance: for tests and the demo's outages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidecar.sandbox.faults import FaultError, FaultPlan, parse_fault

__all__ = ["FaultError", "OpenMeterFault", "OpenMeterFaults"]

DELAY_MS_MAX = 60_000
RETRY_AFTER_CHARS_MAX = 64


@dataclass(frozen=True, slots=True)
class OpenMeterFault:
    """What happens to one ingest request. Raises :class:`FaultError` for a value out of range.

    * ``delay_ms``: wait first.
    * ``status``: answer with it, an error, after keeping the first ``kept`` events of the batch: OpenMeter's 500 in
      mid-batch is not atomic. ``retry_after`` is the value of that header field. An empty batch does not meet it:
      OpenMeter answers one 204 whatever is wrong, since nothing is looked at and nothing is produced.
    * ``drop``: cut the connection, "before" or "after" keeping the events.
    * ``hang``: keep nothing and never answer.
    * ``lose``: answer as if all were well and keep nothing; a 204 proves only that Kafka's client took the events.

    A fault with none of these lets the request pass, which is of use in a script.
    """

    status: int = 0
    kept: int = 0
    retry_after: str = ""
    delay_ms: int = 0
    drop: Literal["", "before", "after"] = ""
    hang: bool = False
    lose: bool = False

    def __post_init__(self) -> None:
        if self.status and not 400 <= self.status <= 599:
            raise FaultError(f"status: {self.status} is not from 400 to 599")
        if self.kept < 0 or (self.kept and not self.status):
            raise FaultError("kept: must be at least 0, and goes with a status")
        if not 0 <= self.delay_ms <= DELAY_MS_MAX:
            raise FaultError(f"delay_ms: {self.delay_ms} is not from 0 to {DELAY_MS_MAX}")
        if self.drop not in ("", "before", "after"):
            raise FaultError('drop: must be "", "before" or "after"')
        if len(self.retry_after) > RETRY_AFTER_CHARS_MAX or not self.retry_after.isprintable():
            raise FaultError(f"retry_after: must be at most {RETRY_AFTER_CHARS_MAX} printable characters")

    @classmethod
    def parse(cls, value: object) -> OpenMeterFault:
        """A fault from JSON. Raises :class:`FaultError` for unknown keys and values of the wrong type."""
        return parse_fault(cls, value)


class OpenMeterFaults(FaultPlan[OpenMeterFault]):
    """The faults to come of one stand-in."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(OpenMeterFault, seed)

    def next(self, *, is_empty: bool = False) -> OpenMeterFault | None:
        """The fault for the next request, if any. ``is_empty``: the request is an empty batch."""
        return self.take(lambda fault: not (is_empty and fault.status))
