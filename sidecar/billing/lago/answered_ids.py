"""Whether an answer is about what was asked for.

A router that cuts an id, a proxy that decodes one, or a Lago that overlooks a filter answers 200 with somebody else's
object. Nobody may be charged or served by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from sidecar.billing.lago.errors import LagoMalformed, excerpt
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import AppliedCoupon, CreditNote, Invoice, Subscription, Wallet

T = TypeVar("T")
Owned = TypeVar("Owned", Wallet, Subscription, Invoice, AppliedCoupon, CreditNote)

ID_NAMES: Final = ("lago_id", "external_id", "code")
"""Where Lago's objects have the ids that paths name them by."""


def same(endpoint: str, parse: Callable[[Fields], T], id_of: Callable[[T], str], asked: str) -> Callable[[Fields], T]:
    """``parse``, for an answer that must be about ``asked``. What it returns raises ``LagoMalformed``."""

    def parse_same(row: Fields) -> T:
        found = parse(row)
        if id_of(found) != asked:
            raise _other(endpoint, id_of(found), asked)
        return found

    return parse_same


def all_of(endpoint: str, customer: str, found: tuple[Owned, ...]) -> tuple[Owned, ...]:
    """``found``, if it is all of one customer. Raises ``LagoMalformed``."""
    for each in found:
        if each.customer is not None and each.customer != customer:
            raise LagoMalformed(f"{endpoint}: {each.lago_id} is of customer {each.customer!r}, not of {customer!r}")
    return found


def check_updated(endpoint: str, path: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Raises ``LagoMalformed`` if the answer to a PUT has an object that is not the one of the path.

    The body may have given it another code.
    """
    asked = unquote(path.rsplit("/", 1)[1])
    for name, wanted in body.items():
        row = answer.get(name)
        if not isinstance(row, dict):
            continue
        given = wanted if isinstance(wanted, Mapping) else {}
        ids = {key: row[key] for key in ID_NAMES if row.get(key) is not None}
        if ids and not any(found in (asked, given.get(key)) for key, found in ids.items()):
            raise _other(endpoint, str(next(iter(ids.values()))), asked)


def _other(endpoint: str, found: str, asked: str) -> LagoMalformed:
    return LagoMalformed(f"{endpoint}: it answers {excerpt(repr(found), 80)}, not {excerpt(repr(asked), 80)}")
