"""Finds which fees of a charge with filters count an event, as Lago does when it makes an invoice. Without I/O.

Each filter makes a fee of its own, and so does what no filter takes. The fee of a filter counts the events whose
properties are among the filter's values, but not those that a filter with further properties takes too (lago-api
``app/services/charge_filters/matching_and_ignored_service.rb`` and ``filters_scope`` in
``app/services/events/stores/postgres_store.rb``). So several fees may count one event.

Of filters with the same properties that take an event, Lago up to v1.51.0 bills all, or none, and since lago-api#5916
the one whose values are among those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final

from sidecar.billing.lago.models import ChargeFilter

ALL_VALUES: Final = "__ALL_FILTER_VALUES__"

SAME_PROPERTIES: Final = (
    "two filters with the same properties share values; Lago up to v1.51.0 bills their events twice or never"
)

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
    taking = [place for place, mine in enumerate(values) if _has_all(mine, properties)]
    found = [place for place in taking if not any(values[other].keys() > values[place].keys() for other in taking)]
    for place in found:
        same = [at for at, other in enumerate(values) if at != place and other.keys() == values[place].keys()]
        if any(at in found or _is_within(values[at], values[place]) for at in same):
            raise UnknownFilter(SAME_PROPERTIES)
    return tuple(found) or (None,)


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


def _is_within(one: _Values, other: _Values) -> bool:
    """Whether each value of one filter is among those of another with the same properties."""
    return all(allowed <= other[name] for name, allowed in one.items())
