"""Finds which fees of a charge with filters count an event, as Lago does when it makes an invoice. Without I/O.

Each filter makes a fee of its own, and so does what no filter takes. The fee of a filter counts the events whose
properties are among the filter's values, but not those that a narrower filter takes too: one with further properties,
or with the same properties and only values that the first has (lago-api
``app/services/charge_filters/matching_and_ignored_service.rb`` and ``filters_scope`` in
``app/services/events/stores/postgres_store.rb``). So several fees may count one event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
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
        taking = [other for other in values if other is not mine and _has_all(other, properties)]
        if not any(_is_narrower(other, mine) for other in taking):
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


def _is_narrower(other: _Values, mine: _Values) -> bool:
    """Of two filters that take the same event: whether Lago leaves it to the other one."""
    if other.keys() == mine.keys():
        return all(allowed <= mine[name] for name, allowed in other.items())
    return other.keys() > mine.keys()
