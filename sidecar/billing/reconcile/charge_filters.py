"""Finds which fees of a charge with filters count an event, as Lago does when it makes an invoice. Without I/O.

Each filter makes a fee of its own, and so does what no filter takes. The fee of a filter counts the events whose
properties are among the filter's values, but not those of another filter that shares a value with it in every property
and is narrower: it has more properties, or of the same properties only values of the first (lago-api
``app/services/charge_filters/matching_and_ignored_service.rb`` and ``filters_scope`` in
``app/services/events/stores/postgres_store.rb``). So some events are counted by two fees, or by none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Final

from sidecar.billing.lago.models import ChargeFilter

ALL_VALUES: Final = "__ALL_FILTER_VALUES__"

_Values = Mapping[str, Set[str]]


class UnknownFilter(Exception):
    """It cannot be told what a filter takes. The message says why."""


def counting_filters(
    filters: Sequence[ChargeFilter], listed: Mapping[str, Sequence[str]], properties: Mapping[str, str]
) -> tuple[int | None, ...]:
    """The places in ``filters`` whose fees count an event with these properties; None is the fee of what no filter
    takes. ``listed``: the values that the billable metric has of each property.

    Raises:
        UnknownFilter: it depends on what Lago does not tell.
    """
    values = [_values_of(each, listed) for each in filters]
    found: list[int | None] = []
    for place, mine in enumerate(values):
        if not _has_all(mine, properties):
            continue
        if any(mine == other for at, other in enumerate(values) if at != place):
            raise UnknownFilter("two of its filters have the same values, and Lago bills the older one")
        others = [other for at, other in enumerate(values) if at != place]
        if not any(_is_left_to(other, mine, filters[place], properties) for other in others):
            found.append(place)
    if not any(each and _has_all(each, properties) for each in values):
        found.append(None)
    return tuple(found)


def _values_of(each: ChargeFilter, listed: Mapping[str, Sequence[str]]) -> _Values:
    found: dict[str, Set[str]] = {}
    for name, values in each.values.items():
        if values == (ALL_VALUES,):
            if name not in listed:
                raise UnknownFilter(f"a filter takes every value of {name}, of which the billable metric lists none")
            found[name] = frozenset(listed[name])
        else:
            found[name] = frozenset(values)
    return found


def _has_all(values: _Values, properties: Mapping[str, str]) -> bool:
    return all(properties.get(name) in allowed for name, allowed in values.items())


def _is_left_to(other: _Values, mine: _Values, filter_: ChargeFilter, properties: Mapping[str, str]) -> bool:
    """Whether Lago takes the event out of a filter's fee because of another filter."""
    if not all(allowed & other.get(name, frozenset()) for name, allowed in mine.items()):
        return False
    conditions = [(name, allowed) for name, allowed in _left_out(other, mine, filter_) if allowed]
    return bool(conditions) and all(properties.get(name, "") in allowed for name, allowed in conditions)


def _left_out(other: _Values, mine: _Values, filter_: ChargeFilter) -> Iterator[tuple[str, Set[str]]]:
    is_narrower = other.keys() != mine.keys() or all(allowed <= mine[name] for name, allowed in other.items())
    for name, allowed in other.items():
        takes_all = filter_.values.get(name) == (ALL_VALUES,)
        yield name, allowed if is_narrower or takes_all else allowed - mine[name]
