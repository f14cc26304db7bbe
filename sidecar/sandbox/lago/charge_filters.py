"""Which events the fee of a charge's filter counts, and how they are grouped.

Source: lago-api ``app/services/charge_filters/matching_and_ignored_service.rb``, ``filters_scope`` in
``app/services/events/stores/postgres_store.rb``, ``app/services/fees/charge_service.rb``. Lago puts conditions to the
database: those that an event must fulfil, and those of other filters that it must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.sandbox.lago.records import Charge, Event, Filter, Metric

ALL_VALUES = "__ALL_FILTER_VALUES__"
Conditions = Mapping[str, Sequence[str]]


def scopes(charge: Charge) -> Iterator[tuple[Filter | None, Conditions, list[Conditions]]]:
    """Each filter with its conditions and those that it leaves out; at last what no filter takes, without a filter."""
    expanded: list[Conditions] = [_expanded(filter_["values"], charge.metric) for filter_ in charge.filters]
    for place, (filter_, mine) in enumerate(zip(charge.filters, expanded, strict=True)):
        left_out: list[Conditions] = []
        for other_place, other in enumerate(expanded):
            if other_place != place and all(set(values) & set(other.get(key, ())) for key, values in mine.items()):
                kept = _left_out(mine, other, filter_["values"], other_is_older=other_place < place)
                left_out += [kept] if kept else []
        yield filter_, mine, left_out
    yield None, {}, expanded


def _expanded(values: Any, metric: Metric) -> dict[str, list[str]]:
    listed: dict[str, Any] = {str(each["key"]): each["values"] for each in metric.filters}
    return {key: listed.get(key, []) if allowed == [ALL_VALUES] else allowed for key, allowed in values.items()}


def _left_out(mine: Conditions, other: Conditions, values: Any, *, other_is_older: bool) -> Conditions | None:
    """Of filters with the same keys the later one counts nothing if their values are the same too, and the narrower one
    comes first; any other is left out only with the values that are not in this filter."""
    if sorted(mine) != sorted(other):
        return other
    if all(sorted(allowed) == sorted(mine[key]) for key, allowed in other.items()):
        return other if other_is_older else None
    if all(set(allowed) <= set(mine[key]) for key, allowed in other.items()):
        return other
    return {
        key: allowed if values[key] == [ALL_VALUES] else [value for value in allowed if value not in mine[key]]
        for key, allowed in other.items()
    }


def is_counted(event: Event, conditions: Conditions, left_out: Sequence[Conditions]) -> bool:
    """Whether an event fulfils the conditions, and none of those that are left out. Empty ones are dropped."""
    if not all(_text(event, key) in allowed for key, allowed in conditions.items()):
        return False
    for one in left_out:
        given = {key: allowed for key, allowed in one.items() if allowed}
        if given and all((_text(event, key) or "") in allowed for key, allowed in given.items()):
            return False
    return True


def group_keys(properties: Mapping[str, Any]) -> list[str]:
    """What a price is grouped by."""
    return properties.get("pricing_group_keys") or properties.get("grouped_by") or []


def grouped(events: Sequence[Event], keys: Sequence[str]) -> list[tuple[dict[str, str | None], list[Event]]]:
    """The events of each group; one group of nothing if there are none."""
    groups: dict[tuple[str | None, ...], list[Event]] = {}
    for event in events:
        groups.setdefault(tuple(_text(event, key) for key in keys), []).append(event)
    if not groups:
        groups[tuple(None for _ in keys)] = []
    return [(dict(zip(keys, values, strict=True)), found) for values, found in groups.items()]


def _text(event: Event, key: str) -> str | None:
    value = event.properties.get(key)
    return None if value is None else str(value)
