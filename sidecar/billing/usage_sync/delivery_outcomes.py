"""What the outcomes of deliveries change in what is remembered, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sidecar.billing.usage_sync.delivery import Outcome
from sidecar.billing.usage_sync.frozen_events import Outgoing
from sidecar.billing.usage_sync.pushed_usage import Book
from sidecar.billing.usage_sync.sync_store import Change, Remembered


def absorb(remembered: Remembered, outcomes: Mapping[str, Outcome]) -> Change:
    """What to write. Outcomes of events that are not remembered say nothing of this account."""
    books: dict[tuple[int, str], Book] = {}
    delivered: list[str] = []
    set_aside: list[Outgoing] = []
    for transaction_id, outgoing in remembered.outgoing.items():
        outcome = outcomes.get(transaction_id)
        if outcome is None:
            continue
        match outcome.kind:
            case "sent" | "duplicate":
                delivered.append(transaction_id)
            case "adopted":
                delivered.append(transaction_id)
                _correct(books, remembered, outgoing, outcome.units - outgoing.units)
            case "void":
                delivered.append(transaction_id)
                _correct(books, remembered, outgoing, -outgoing.units)
            case "rejected" | "conflict":
                aside = replace(outgoing, state=outcome.kind, reason=outcome.reason)
                if aside != outgoing:
                    set_aside.append(aside)
            case "unseen":
                pass
    return Change(books=tuple(books.values()), outgoing=set_aside, delivered=delivered)


def _correct(books: dict[tuple[int, str], Book], remembered: Remembered, outgoing: Outgoing, difference: int) -> None:
    """Lago counts other units for an event than were frozen."""
    own = outgoing.period_start_ms // 1000, outgoing.metric
    target = outgoing.target_start_ms // 1000, outgoing.metric
    book = books.get(own) or remembered.books.get(own)
    if book is not None:
        carried = difference if outgoing.is_carried else 0
        books[own] = book.adjusted(outgoing.segment_s, pushed=difference - carried, carried=carried)
    into = books.get(target) or remembered.books.get(target)
    if into is not None and outgoing.is_carried:
        books[target] = replace(into, carried_in=into.carried_in + difference)
