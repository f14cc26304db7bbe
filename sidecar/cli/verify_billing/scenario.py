"""The shape of a scenario, and what came of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from sidecar.cli.verify_billing.rig import Rig

Need = Literal["clock", "webhooks"]
Result = Literal["ok", "differs", "failed", "skipped"]


class Skipped(Exception):
    """A scenario cannot be tried here. The message says why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One thing in two books, as text."""

    what: str
    expected: str
    found: str

    @property
    def is_equal(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a scenario. ``why`` it was skipped or failed, or a remark."""

    name: str
    shows: str
    result: Result
    seconds: float
    comparisons: tuple[Comparison, ...] = ()
    why: str = ""


class Scenario(ABC):
    """One scenario of one run: the three steps are called once, in this order.

    Attributes:
        name: of the row, and of the account in it.
        shows: the sentence that is false if the row differs.
        needs: what a Lago has to have for it.
        note: a remark for the row, set by a step.
    """

    name: ClassVar[str]
    shows: ClassVar[str]
    needs: ClassVar[Need | None] = None
    note: str = ""

    @abstractmethod
    async def prepare(self, rig: Rig) -> None:
        """Makes what it needs in Lago, and waits until the ledger has it."""

    @abstractmethod
    async def drive(self, rig: Rig) -> None:
        """Calls through the gateway, changes things in Lago."""

    @abstractmethod
    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        """Reads all books. Raises as the other steps do: `Skipped`, `NotSeen`, `LagoError`, `QueryError`."""
