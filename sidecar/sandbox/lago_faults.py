"""Trouble for requests to the Lago stand-in, scripted or drawn by chance, by path: for tests and outages in a demo."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

SCRIPT_MAX = 10_000
DELAY_MS_MAX = 60_000
PATH_CHARS_MAX = 256
HEADER_CHARS_MAX = 64


class FaultError(ValueError):
    """A fault cannot be understood. The message names the field."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request. Raises :class:`FaultError` for a value out of range.

    * ``path``: a prefix, ``/api/v1/wallets``; requests of other paths pass. ``method``: likewise, "" for any.
    * ``delay_ms``: wait first.
    * ``status``: answer with it and do nothing. Its body is Lago's error; ``retry_after`` is that header field.
    * ``body``: "html" or "garbage" answers with such a body, with ``status`` or 200, and does nothing.
    * ``drop``: cut the connection, "before" or "after" doing what was asked.
    """

    path: str = ""
    method: str = ""
    delay_ms: int = 0
    status: int = 0
    body: str = ""
    drop: str = ""
    retry_after: str = ""

    def __post_init__(self) -> None:
        if len(self.path) > PATH_CHARS_MAX or (self.path and not self.path.startswith("/")):
            raise FaultError(f"path: must be a path of at most {PATH_CHARS_MAX} characters")
        if self.method not in ("", "GET", "POST", "PUT", "DELETE"):
            raise FaultError("method: must be GET, POST, PUT or DELETE")
        if self.status and not 200 <= self.status <= 599:
            raise FaultError(f"status: {self.status} is not from 200 to 599")
        if not 0 <= self.delay_ms <= DELAY_MS_MAX:
            raise FaultError(f"delay_ms: {self.delay_ms} is not from 0 to {DELAY_MS_MAX}")
        if self.body not in ("", "html", "garbage"):
            raise FaultError('body: must be "", "html" or "garbage"')
        if self.drop not in ("", "before", "after"):
            raise FaultError('drop: must be "", "before" or "after"')
        if len(self.retry_after) > HEADER_CHARS_MAX or not self.retry_after.isprintable():
            raise FaultError(f"retry_after: must be at most {HEADER_CHARS_MAX} printable characters")

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

    def meets(self, method: str, path: str) -> bool:
        return path.startswith(self.path) and self.method in ("", method)


@dataclass(frozen=True, slots=True)
class Chance:
    """A fault that strikes with a probability."""

    probability: float
    fault: Fault

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise FaultError(f"probability: {self.probability} is not from 0 to 1")


class Faults:
    """The faults to come. Each entry of the script strikes once, the first that meets a request; where none does, the
    chances are drawn. ``struck`` counts.
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
        """A chance of 1: every request that it meets, until :meth:`clear`."""
        self.chance(1.0, fault)

    def clear(self) -> None:
        self._script.clear()
        self._chances.clear()

    def next(self, method: str, path: str) -> Fault | None:
        """The fault for a request, if any."""
        found = next((fault for fault in self._script if fault.meets(method, path)), None)
        if found is not None:
            self._script.remove(found)
        else:
            found = self._drawn(method, path)
        if found is not None:
            self.struck += 1
        return found

    def _drawn(self, method: str, path: str) -> Fault | None:
        for chance in self._chances:
            if chance.fault.meets(method, path) and self._random.random() < chance.probability:
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
            raise FaultError(f"{str(min(unknown))[:40]}: there is no such key; there are script, chances, seed")
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
