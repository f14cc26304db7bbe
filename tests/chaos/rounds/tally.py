"""What a round of faults cost, and the sums of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

LOSING: Final = ("gateway killed", "machine of server and gateway is lost")
"""Faults that may lose charges: what the gateway had answered and not sent yet, or what only its memory had."""
OVERSPENDING: Final = ("all data gone", "data rolled back", "failover to a replica that lags", "planned failover",
                       "machine loses the last second", "machine of server and gateway is lost")  # fmt: skip
"""Faults after which credit may be spent twice until every gateway has offered again what the server lost."""


@dataclass(frozen=True)
class Round:
    """One fault under load, and what was so afterwards.

    Attributes:
        requests: sent; served: answered 200.
        lost: served and charged nowhere. doubled: charged beyond what was served or left without an answer.
        overspent: units charged beyond an account's funds. held: units that stayed held.
        recovery_s: from the fault's end to a served call at every gateway.
        differences: what ``ledger verify`` found.
    """

    topology: str
    kind: str
    seed: int
    requests: int = 0
    served: int = 0
    lost: int = 0
    doubled: int = 0
    overspent: int = 0
    held: int = 0
    recovery_s: float = 0.0
    differences: Sequence[str] = ()
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def is_as_promised(self) -> bool:
        """Nothing is lost, doubled, overspent or held, but for what docs/reliability.md says of the fault."""
        lost = self.lost and self.kind not in LOSING
        overspent = self.overspent and self.kind not in OVERSPENDING
        return not (lost or self.doubled or overspent or self.held or self.differences)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def table(rounds: Iterable[Round]) -> str:
    """Sums by topology and kind, as Markdown."""
    by_kind: dict[tuple[str, str], list[Round]] = {}
    for each in rounds:
        by_kind.setdefault((each.topology, each.kind), []).append(each)
    lines = [
        "| topology | fault | rounds | requests | lost | doubled | overspent | held | median / longest recovery, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = sorted(by_kind.items())
    for (topology, kind), some in rows:
        lines.append(_row(topology, kind, some))
    everything = [each for _, some in rows for each in some]
    if everything:
        lines.append(_row("all", "", everything))
    return "\n".join(lines)


def _row(topology: str, kind: str, some: list[Round]) -> str:
    def total(name: str) -> str:
        return f"{sum(getattr(each, name) for each in some):,}"

    recovery = [each.recovery_s for each in some]
    cells = (
        topology, kind, f"{len(some):,}", total("requests"), total("lost"), total("doubled"), total("overspent"),
        total("held"), f"{median(recovery):.1f} / {max(recovery):.1f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"
