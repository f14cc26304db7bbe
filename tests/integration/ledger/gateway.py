"""A gateway process as the scripts see one: it numbers its batches, remembers its holds, and is told of no reaping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.reference.messages import HOLD, RELEASE, REPLAY, SETTLE, Batch, Code, Event, Group, Reply, Single

OpKind = Literal["hold", "settle", "release", "late", "hold once", "settle once", "replay"]


@dataclass(frozen=True)
class OpenHold:
    account: str
    metric: str
    units: int
    epoch: int
    once: Single | None = None
    """Its key, if that is the hold's own until it ends."""


@dataclass(frozen=True)
class Op:
    """One thing to do. ``pick`` chooses among the open holds for what ends one. ``answered``: what is released was."""

    kind: OpKind
    account: str
    metric: str
    units: int
    pick: int = 0
    scope: str = ""
    body: str = ""
    repeats_max: int = 2
    refuses: bool = False
    record: str = ""
    answered: bool = False


@dataclass
class Gateway:
    name: str
    epoch: int = 0
    seq: int = 0
    open: list[OpenHold] = field(default_factory=list)
    last: Batch | None = None

    def compose(self, ops: Iterable[Op], *, merge: bool, versions: dict[str, int]) -> Batch:
        """The next batch. ``merge``: one group for each metric of an account, as the client has it; else one each."""
        groups: list[Group] = []
        singles: list[Single] = []
        unpaid: Counter[str] = Counter()
        for op in ops:
            self._add(op, groups, singles, unpaid, versions)
        self.seq += 1
        merged = tuple(_merged(groups) if merge else groups)
        self.last = Batch(self.epoch, self.seq, merged, tuple(singles), tuple(unpaid.items()))
        return self.last

    def _add(
        self, op: Op, groups: list[Group], singles: list[Single], unpaid: Counter[str], versions: dict[str, int]
    ) -> None:
        known = versions.get(op.account, 0)
        once = Single(
            op.account, op.metric, op.units, op.scope, HOLD, known, op.body, op.repeats_max, op.refuses
        )  # fmt: skip
        match op.kind:
            case "hold":
                groups.append(Group.of(op.account, op.metric, hold=(op.units,), known_version=known))
            case "late":
                groups.append(Group.of(op.account, op.metric, late=(op.units,), known_version=known))
            case "hold once":
                singles.append(once)
            case "replay":
                scope = op.scope if op.pick % 4 else ""
                singles.append(replace(once, kind=REPLAY, scope=scope, record=op.record))
            case "settle" | "settle once" | "release":
                self._end(op, groups, singles, unpaid)

    def _end(self, op: Op, groups: list[Group], singles: list[Single], unpaid: Counter[str]) -> None:
        fitting = [h for h in self.open if op.kind == "release" or (h.once is None) == (op.kind == "settle")]
        if not fitting:
            if op.answered and op.account:
                unpaid[op.account] += 1  # what is not held any more was answered all the same
            return
        hold = fitting[op.pick % len(fitting)]
        self.open.remove(hold)
        live = hold.epoch == self.epoch
        if op.kind == "release" and op.answered:
            unpaid[hold.account] += 1
        if hold.once is not None:
            singles.append(replace(hold.once, kind=RELEASE if op.kind == "release" else SETTLE))
        elif op.kind == "release":
            if live:  # what an older epoch held was given back by the reaper
                groups.append(Group.of(hold.account, hold.metric, release=hold.units))
        elif live:
            groups.append(Group.of(hold.account, hold.metric, settle=(hold.units,)))
        else:
            groups.append(Group.of(hold.account, hold.metric, late=(hold.units,)))

    def take(self, batch: Batch, reply: Reply) -> None:
        """Remembers what was granted."""
        for group, summary in zip(batch.groups, reply.groups, strict=True):
            if summary is None:
                continue
            for units, outcome in zip(group.holds, summary.outcomes, strict=True):
                if outcome.code == Code.GRANTED:
                    self.open.append(OpenHold(group.account, group.metric, units, batch.epoch))
        for single, summary in zip(batch.singles, reply.singles, strict=True):
            if single.kind == HOLD and summary.outcomes[0].code == Code.GRANTED:
                own = replace(single, epoch=batch.epoch, token=summary.token) if summary.token else None
                self.open.append(OpenHold(single.account, single.metric, single.units, batch.epoch, own))


def _merged(groups: list[Group]) -> list[Group]:
    by_metric: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        by_metric.setdefault((group.account, group.metric), []).append(group)
    return [
        Group(
            account,
            metric,
            sum(g.settled for g in parts),
            sum(g.released for g in parts),
            sum(g.late for g in parts),
            tuple(units for g in parts for units in g.holds),
            max(g.known_version for g in parts),
            tuple(event for g in parts for event in g.events),
        )
        for (account, metric), parts in by_metric.items()
    ]


def events_of(batch: Batch) -> list[Event]:
    """Every event that a batch carries, charged or not."""
    return [event for group in batch.groups for event in group.events] + [s.event for s in batch.singles if s.event]
