"""Applies the outcomes of deliveries to the sync state, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sidecar.billing.usage_sync.delivery import DeliveryOutcome
from sidecar.billing.usage_sync.frozen_events import FrozenEvent
from sidecar.billing.usage_sync.pushed_usage import PushedUsage
from sidecar.billing.usage_sync.sync_store import SyncState, SyncStateChange


def apply_outcomes(state: SyncState, outcomes: Mapping[str, DeliveryOutcome]) -> SyncStateChange:
    """The change to write. Outcomes of events that are not in the state say nothing of this account."""
    pushed_usages: dict[tuple[int, str], PushedUsage] = {}
    delivered: list[str] = []
    set_aside: list[FrozenEvent] = []
    for transaction_id, frozen_event in state.frozen_events.items():
        outcome = outcomes.get(transaction_id)
        if outcome is None:
            continue
        match outcome.kind:
            case "sent" | "duplicate":
                delivered.append(transaction_id)
            case "adopted":
                delivered.append(transaction_id)
                _correct(pushed_usages, state, frozen_event, outcome.units - frozen_event.units)
            case "void":
                delivered.append(transaction_id)
                _correct(pushed_usages, state, frozen_event, -frozen_event.units)
            case "rejected" | "conflict":
                aside = replace(frozen_event, state=outcome.kind, reason=outcome.reason)
                if aside != frozen_event:
                    set_aside.append(aside)
            case "unseen":
                pass
    return SyncStateChange(pushed_usages=tuple(pushed_usages.values()), frozen_events=set_aside, delivered=delivered)


def _correct(
    pushed_usages: dict[tuple[int, str], PushedUsage], state: SyncState, frozen_event: FrozenEvent, difference: int
) -> None:
    """Lago counts other units for an event than were frozen."""
    own = frozen_event.period_start_ms // 1000, frozen_event.metric
    target = frozen_event.target_start_ms // 1000, frozen_event.metric
    pushed_usage = pushed_usages.get(own) or state.pushed_usages.get(own)
    if pushed_usage is not None:
        carried = difference if frozen_event.is_carried else 0
        pushed_usages[own] = pushed_usage.adjusted(frozen_event.segment_s, pushed=difference - carried, carried=carried)
    into = pushed_usages.get(target) or state.pushed_usages.get(target)
    if into is not None and frozen_event.is_carried:
        pushed_usages[target] = replace(into, carried_in=into.carried_in + difference)
