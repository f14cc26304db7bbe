"""An account of format 1 as format 2 stores it (lua/lib/account.lua has the layout)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgpack

from sidecar.ledger.accounts.account_about import About
from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.state_values import StateValues, pack_ends
from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.migration.first_format import FirstAccount

SUBSCRIPTION: Final = ""
"""The name of the one subscription that an account of format 1 had."""

_COUNT: Final = 4


def converted_state(account: FirstAccount) -> bytes:
    """The state. Whoever held units has stopped, so nothing is held. The straight piece of a price is found anew."""
    terms = (
        account.version, account.status, False if account.ceiling is None else account.ceiling,
        int(account.counts_unsettled), account.rate_interval_us, account.burst, account.day_limit, account.unsettled,
    )  # fmt: skip
    return StateValues(
        terms=terms,
        subscriptions=((SUBSCRIPTION, account.start_ms, account.end_ms),),
        counters=tuple((1, each.metric, 0, 1, 0, 0, 0, 0, each.settled, 0, 0) for each in account.usages),
        limits=(account.tat_us, 0, account.day, account.day_count),
    ).packed()


def converted_fields(account: FirstAccount) -> dict[str, bytes]:
    """The fields of the hash, but for hours.

    Raises:
        ValueError: ``info`` cannot be read.
    """
    fields: dict[str, bytes] = {}
    if account.version:
        fields = {
            "prices": pack([dict(account.prices), dict(account.former_prices)]),
            "periods": pack([pack_ends(account.next_ends_ms)]),
            "view": _view(account),
            "about": converted_about(account.info).packed(),
        }
    if account.closed:
        fields["closed"] = pack(
            [part for each in account.closed for part in
             (each.start_ms, SUBSCRIPTION, each.metric, each.units, each.cost)]
        )  # fmt: skip
    if account.digits is not None:
        fields["digits"] = b"%d" % account.digits
    if account.fence is not None:
        fields["fence"] = b"%d" % account.fence
    return fields


def taken(account: FirstAccount, hours: Iterable[tuple[int, str, int]]) -> bytes | None:
    """The settled units of the current period that no hour has, as the field ``taken`` has them; None if there are
    none. Release 0.2 kept hours for nine days. ``hours``: hour since the Unix epoch, metric and units.
    """
    of_hours: dict[str, int] = {}
    for hour, metric, units in hours:
        if (hour + 1) * HOUR_MS > account.start_ms:
            of_hours[metric] = of_hours.get(metric, 0) + units
    rows = [
        part
        for usage in account.usages
        if (units := usage.settled - of_hours.get(usage.metric, 0)) > 0
        for part in (account.start_ms, SUBSCRIPTION, usage.metric, units)
    ]
    return pack(rows) if rows else None


def converted_about(info: Mapping[str, Any]) -> About:
    """What people are told of an account.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        word = info.get("by_operator")
        amounts = {str(name): str(amount) for name, amount in info.get("amounts", {}).items()}
        digests = tuple(str(digest) for digest in info.get("api_keys") or ())
        return About(amounts, digests, Status.of(word) if word else None)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"its info lacks something, or has something else: {error}") from None


def rate_text(per_second: float | int) -> str:
    """The rate as the account was given it: format 1 kept a floating-point number of it.

    Raises:
        ValueError: it is none.
    """
    try:
        rate = Decimal(repr(per_second))
    except InvalidOperation:
        raise ValueError(f"its rate is {per_second!r}") from None
    return format(rate.quantize(Decimal(1)) if rate == rate.to_integral_value() else rate.normalize(), "f")


def _view(account: FirstAccount) -> bytes:
    info = account.info
    try:
        view = [
            account.digits,
            str(info["currency"]),
            str(info["mode"]),
            rate_text(info.get("rate_per_second", 0)),
            int(info.get("burst", 0)),
            int(info.get("day_limit", 0)),
            max(0, account.ceiling or 0),
            bool(info.get("constant_prices", False)),
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its info lacks something, or has something else: {error}") from None
    return pack(view)


def with_hours(packed: bytes | None, counts: Iterable[tuple[int, str, int]]) -> bytes:
    """The counts of a day with those of hours of it set: hour of the day, metric and units.

    Raises:
        ValueError: ``packed`` is none.
    """
    known = {(hour, metric): units for hour, metric, units in hours_of(packed or b"")}
    known |= {(hour, metric): units for hour, metric, units in counts}
    return b"".join(
        pack(value) for (hour, metric), units in known.items() for value in (hour, SUBSCRIPTION, metric, units)
    )


def hours_of(packed: bytes) -> list[tuple[int, str, int]]:
    """Hour of the day, metric and units of each count of a day.

    Raises:
        ValueError: it is none.
    """
    reader = msgpack.Unpacker(raw=False)
    reader.feed(packed)
    values = list(reader)
    if len(values) % _COUNT:
        raise ValueError(f"{len(values)} values where there should be {_COUNT} of each")
    return list(zip(values[::_COUNT], values[2::_COUNT], values[3::_COUNT], strict=True))


def pack(value: Any) -> bytes:
    """As the Lua reads it: cmsgpack does not know the newer type for bytes."""
    return bytes(msgpack.packb(value, use_bin_type=False))
