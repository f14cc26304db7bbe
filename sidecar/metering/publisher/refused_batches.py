"""Events that were refused and wait for a proof that it is their own fault, without I/O.

A refusal alone proves nothing. A proxy, a wrong ``source`` or a quota of a gateway in front refuses good events as
well, and OpenMeter answers an empty batch 204 whatever is wrong. The proof is that other events are accepted:

* An event was refused, new events that were sent later are accepted, and the event is refused by itself: a dead letter.
* Events that had been refused with it, or at the same time, are accepted later, and it is refused by itself in
  ``TRIALS`` trials after that, ``metering.pause_ms`` apart: a dead letter. These events prove less, since a server that
  accepts now and then accepts them as well.
* Its neighbours were accepted while their batch was divided, but nothing after it was, and fewer than
  ``REFUSED_IN_A_ROW_MAX`` were refused at the end with it. If it is refused once more, after ``metering.pause_ms``: a
  dead letter.
* Otherwise it waits, and is tried again every ``metering.pause_ms``, for as long as it takes.

A proof can be void. If new events are refused while nothing is accepted, every event that waits needs a new acceptance.
If an event that was refused is accepted after all, the server was at fault: the refusals of all that wait count for
nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Batch, Entry
from sidecar.metering.publisher.delivery_pause import Accepted

TRIALS: Final = 3
"""How often an event is refused after others that had been refused are accepted, before it is its own fault."""


@dataclass(slots=True, eq=False)
class RefusedBatch:
    """One event that was refused, or several that were refused as a part of a larger batch.

    ``refused_at``: how many requests had been sent by then. ``is_refused``: the event was refused by itself.
    ``due_s``: when it is tried without a proof, on a monotonic clock. ``neighbours_passed``: events of its batch were
    accepted, and few were refused at the end. ``trials``: how often it was refused since others were accepted.
    ``excused``: the refusal was the server's fault.
    """

    batch: Batch
    refused_at: int
    is_refused: bool
    due_s: float = 0.0
    neighbours_passed: bool = False
    trials: int = 0
    excused: bool = False

    def __len__(self) -> int:
        return len(self.batch)

    def is_at_fault(self, accepted: Accepted) -> bool:
        """Whether an event of these is a dead letter if it is refused by itself now."""
        if self.excused:
            return False
        is_tried = self.others_passed(accepted) and self.trials + 1 >= TRIALS
        return accepted.new_events > self.refused_at or self.neighbours_passed or is_tried

    def others_passed(self, accepted: Accepted) -> bool:
        """Whether any events were accepted after the refusal."""
        return not self.excused and accepted.any_events > self.refused_at

    def may_be_tried(self, accepted: Accepted, now_s: float) -> bool:
        """Whether trying it now may tell anything new."""
        is_proven = accepted.new_events > self.refused_at
        return not self.is_refused or self.excused or is_proven or self.due_s <= now_s


class RefusedBatches:
    """The refused events of a publisher, in the order in which they are tried.

    What :meth:`take` gives out counts as waiting until :meth:`done`.
    """

    def __init__(self, metrics: PublisherMetrics) -> None:
        self._metrics = metrics
        self._waiting: deque[RefusedBatch] = deque()
        self._taken: set[RefusedBatch] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)

    def __repr__(self) -> str:
        return f"RefusedBatches({len(self._waiting)} wait, {len(self._taken)} are tried, {self._events()} events)"

    def add(self, refused: RefusedBatch) -> None:
        """These events wait from now on, behind the others."""
        self._waiting.append(refused)
        self._count()

    def take(self, accepted: Accepted, now_s: float) -> RefusedBatch | None:
        """The first that may be tried now; None if there is none."""
        for _ in range(len(self._waiting)):
            refused = self._waiting.popleft()
            if refused.may_be_tried(accepted, now_s):
                self._taken.add(refused)
                return refused
            self._waiting.append(refused)
        return None

    def done(self, refused: RefusedBatch) -> None:
        """It was tried. What of it has to wait longer was added anew."""
        self._taken.discard(refused)
        self._count()

    def prove_anew(self, sent: int) -> None:
        """What was accepted of the first ``sent`` requests proves nothing any more."""
        for refused in (*self._waiting, *self._taken):
            refused.refused_at = sent
            refused.neighbours_passed, refused.trials = False, 0

    def excuse(self) -> None:
        """All refusals were the server's fault."""
        for refused in (*self._waiting, *self._taken):
            refused.excused = True

    def give_up(self) -> set[Entry]:
        """Forgets the entries of which every event waits here, none accepted and none a dead letter. Answers them."""
        events = Counter(owner for refused in self._waiting for owner in refused.batch.owners)
        untouched = {owner for owner, count in events.items() if count == owner.events and not owner.dead_letters}
        for refused in self._waiting:
            refused.batch = refused.batch.without(untouched)
        self._waiting = deque(refused for refused in self._waiting if len(refused))
        self._count()
        return untouched

    def _events(self) -> int:
        return sum(map(len, self._waiting)) + sum(map(len, self._taken))

    def _count(self) -> None:
        self._metrics.events_refused = self._events()
