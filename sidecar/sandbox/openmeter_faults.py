"""Trouble for ingest requests, scripted one by one or drawn by chance: for tests and the demo's outages."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

DELAY_MS_MAX = 60_000
SCRIPT_MAX = 10_000
RETRY_AFTER_CHARS_MAX = 64


class FaultError(ValueError):
    """A fault cannot be understood. The message names the field."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one ingest request. Raises :class:`FaultError` for a value out of range.

    * ``delay_ms``: wait first.
    * ``status``: answer with it, an error, after keeping the first ``kept`` events of the batch: OpenMeter's 500 in
      mid-batch is not atomic. ``retry_after`` is the value of that header field.
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
    def parse(cls, value: object) -> Fault:
        """A fault from JSON. Raises :class:`FaultError` for unknown keys and values of the wrong type."""
        if not isinstance(value, dict):
            raise FaultError("a fault must be an object")
        types = {item.name: type(item.default) for item in fields(cls)}
        for name, given in value.items():
            if name not in types:
                raise FaultError(f"{str(name)[:40]}: there is no such field; there are {', '.join(types)}")
            if type(given) is not types[name]:
                raise FaultError(f"{name}: must be of type {types[name].__name__}")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Chance:
    """A fault that strikes with a probability."""

    probability: float
    fault: Fault

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise FaultError(f"probability: {self.probability} is not from 0 to 1")


class Faults:
    """The faults to come. A script is used up first, one entry a request; after it the chances are drawn.

    The first chance that strikes decides. ``struck`` counts the requests that met a fault.
    """

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)  # noqa: S311 - draws faults, not keys
        self._script: deque[Fault] = deque()
        self._chances: list[Chance] = []
        self.struck = 0

    def __repr__(self) -> str:
        return f"Faults(script={len(self._script)}, chances={len(self._chances)}, struck={self.struck})"

    def script(self, *faults: Fault) -> None:
        """Appends to the script."""
        if len(self._script) + len(faults) > SCRIPT_MAX:
            raise FaultError(f"script: more than {SCRIPT_MAX} entries")
        self._script.extend(faults)

    def chance(self, probability: float, fault: Fault) -> None:
        if len(self._chances) >= SCRIPT_MAX:
            raise FaultError(f"chances: more than {SCRIPT_MAX} entries")
        self._chances.append(Chance(probability, fault))

    def always(self, fault: Fault) -> None:
        """A chance of 1: every request from now on, until :meth:`clear`."""
        self.chance(1.0, fault)

    def clear(self) -> None:
        """No more faults. Requests that hang already are left hanging."""
        self._script.clear()
        self._chances.clear()

    def next(self) -> Fault | None:
        """The fault for the next request, if any."""
        fault = self._script.popleft() if self._script else self._drawn()
        if fault is not None and fault != Fault():
            self.struck += 1
        return fault

    def _drawn(self) -> Fault | None:
        for chance in self._chances:
            if self._random.random() < chance.probability:
                return chance.fault
        return None

    def replace(self, plan: object) -> None:
        """Puts a plan from JSON in place of all faults, or changes nothing and raises :class:`FaultError`.

        ``{"script": [FAULT, …], "chances": [{"probability": 0.1, "fault": FAULT}, …], "seed": 7}``; each key may
        be left out.
        """
        if not isinstance(plan, dict):
            raise FaultError("the plan must be an object")
        unknown = plan.keys() - {"script", "chances", "seed"}
        if unknown:
            name = str(min(unknown))[:40]
            raise FaultError(f"{name}: there is no such key; there are script, chances, seed")
        seed = plan.get("seed")
        if seed is not None and type(seed) is not int:
            raise FaultError("seed: must be of type int")
        script = [_fault_at(f"script[{i}]", item) for i, item in enumerate(_array(plan, "script"))]
        chances = [_chance_at(i, item) for i, item in enumerate(_array(plan, "chances"))]
        self._script, self._chances = deque(script), chances
        if seed is not None:
            self._random.seed(seed)

    def as_json(self) -> dict[str, object]:
        return {
            "script": [asdict(fault) for fault in self._script],
            "chances": [{"probability": chance.probability, "fault": asdict(chance.fault)} for chance in self._chances],
            "struck": self.struck,
        }


def _array(plan: Mapping[str, object], name: str) -> list[object]:
    value = plan.get(name, [])
    if not isinstance(value, list) or len(value) > SCRIPT_MAX:
        raise FaultError(f"{name}: must be an array of at most {SCRIPT_MAX} entries")
    return value


def _fault_at(where: str, value: object) -> Fault:
    try:
        return Fault.parse(value)
    except FaultError as error:
        raise FaultError(f"{where}: {error}") from None


def _chance_at(index: int, value: object) -> Chance:
    if not isinstance(value, dict) or value.keys() != {"probability", "fault"}:
        raise FaultError(f"chances[{index}]: must have the keys probability and fault")
    probability = value["probability"]
    if isinstance(probability, bool) or not isinstance(probability, int | float):
        raise FaultError(f"chances[{index}].probability: must be a number")
    fault = _fault_at(f"chances[{index}].fault", value["fault"])
    try:
        return Chance(float(probability), fault)
    except FaultError as error:
        raise FaultError(f"chances[{index}].{error}") from None
