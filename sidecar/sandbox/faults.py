"""Faults for requests to a stand-in, scripted or drawn by chance. Each stand-in defines what a fault is."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

SCRIPT_MAX = 10_000


class FaultError(ValueError):
    """A fault cannot be understood. The message names the field."""


class IsFault(Protocol):
    """A frozen dataclass all of whose fields have defaults; with these it does nothing."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


F = TypeVar("F", bound=IsFault)


def parse_fault(kind: type[F], value: object) -> F:
    """A fault from JSON. Raises :class:`FaultError` for unknown keys and values of the wrong type."""
    if not isinstance(value, dict):
        raise FaultError("a fault must be an object")
    types = {item.name: type(item.default) for item in fields(kind)}
    for name, given in value.items():
        if name not in types:
            raise FaultError(f"{str(name)[:40]}: there is no such field; there are {', '.join(types)}")
        if type(given) is not types[name]:
            raise FaultError(f"{name}: must be of type {types[name].__name__}")
    return kind(**value)


@dataclass(frozen=True, slots=True)
class Chance(Generic[F]):
    """A fault that strikes with a probability."""

    probability: float
    fault: F

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise FaultError(f"probability: {self.probability} is not from 0 to 1")


class FaultPlan(Generic[F]):
    """The faults to come. Each entry of the script strikes once, the first that meets a request; where none does, the
    chances are drawn, and the first that strikes decides. ``struck`` counts the requests that met a fault.
    """

    def __init__(self, kind: type[F], seed: int = 1) -> None:
        self._kind = kind
        self._random = random.Random(seed)  # noqa: S311 - draws faults, not keys
        self._script: deque[F] = deque()
        self._chances: list[Chance[F]] = []
        self.struck = 0

    def __repr__(self) -> str:
        return f"Faults(script={len(self._script)}, chances={len(self._chances)}, struck={self.struck})"

    def script(self, *faults: F) -> None:
        """Appends to the script."""
        if len(self._script) + len(faults) > SCRIPT_MAX:
            raise FaultError(f"script: more than {SCRIPT_MAX} entries")
        self._script.extend(faults)

    def chance(self, probability: float, fault: F) -> None:
        if len(self._chances) >= SCRIPT_MAX:
            raise FaultError(f"chances: more than {SCRIPT_MAX} entries")
        self._chances.append(Chance(probability, fault))

    def always(self, fault: F) -> None:
        """A chance of 1: every request that it meets, until :meth:`clear`."""
        self.chance(1.0, fault)

    def clear(self) -> None:
        """No more faults. Requests that hang already are left hanging."""
        self._script.clear()
        self._chances.clear()

    def take(self, meets: Callable[[F], bool]) -> F | None:
        """The fault for a request, if any."""
        found = next((fault for fault in self._script if meets(fault)), None)
        if found is not None:
            self._script.remove(found)
        else:
            found = self._drawn(meets)
        if found is not None and found != self._kind():
            self.struck += 1
        return found

    def _drawn(self, meets: Callable[[F], bool]) -> F | None:
        for chance in self._chances:
            if meets(chance.fault) and self._random.random() < chance.probability:
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
        script = [self._fault_at(f"script[{i}]", item) for i, item in enumerate(_array(plan, "script"))]
        chances = [self._chance_at(i, item) for i, item in enumerate(_array(plan, "chances"))]
        self._script, self._chances = deque(script), chances
        if seed is not None:
            self._random.seed(seed)

    def as_json(self) -> dict[str, object]:
        return {
            "script": [asdict(fault) for fault in self._script],
            "chances": [{"probability": chance.probability, "fault": asdict(chance.fault)} for chance in self._chances],
            "struck": self.struck,
        }

    def _fault_at(self, where: str, value: object) -> F:
        try:
            return parse_fault(self._kind, value)
        except FaultError as error:
            raise FaultError(f"{where}: {error}") from None

    def _chance_at(self, index: int, value: object) -> Chance[F]:
        if not isinstance(value, dict) or value.keys() != {"probability", "fault"}:
            raise FaultError(f"chances[{index}]: must have the keys probability and fault")
        probability = value["probability"]
        if isinstance(probability, bool) or not isinstance(probability, int | float):
            raise FaultError(f"chances[{index}].probability: must be a number")
        fault = self._fault_at(f"chances[{index}].fault", value["fault"])
        try:
            return Chance(float(probability), fault)
        except FaultError as error:
            raise FaultError(f"chances[{index}].{error}") from None


def _array(plan: Mapping[str, object], name: str) -> list[object]:
    value = plan.get(name, [])
    if not isinstance(value, list) or len(value) > SCRIPT_MAX:
        raise FaultError(f"{name}: must be an array of at most {SCRIPT_MAX} entries")
    return value
