"""What the loader writes beside an account's state and no script reads: ``view`` for gateways, ``about`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgpack

from sidecar.ledger.accounts.account_spec import AMOUNTS_OF, AccountSpec, Status
from sidecar.ledger.pricing.price_tables import Standard

DIGEST_BYTES: Final = 32

_AMOUNTS: Final = ("funds", "overdraft", "spending_cap", "credit_limit")
"""Their numbers are stored."""


@dataclass(frozen=True, slots=True)
class About:
    """``amounts``: those of the account's mode, by name, as decimals. ``api_keys``: SHA-256 in lower-case hexadecimal.

    ``by_operator``: the status that a person gave the account, until it is resumed.
    """

    amounts: Mapping[str, str] = field(default_factory=dict)
    api_keys: tuple[str, ...] = ()
    by_operator: Status | None = None

    @classmethod
    def of(cls, spec: AccountSpec, api_keys: tuple[str, ...], by_operator: Status | None = None) -> About:
        """What is to be known of an account that shall be like ``spec``."""
        given = {name: getattr(spec, name) for name in AMOUNTS_OF[spec.mode]}
        amounts = {name: format(value, "f") for name, value in given.items() if value is not None}
        return cls(amounts, api_keys, by_operator)

    def packed(self) -> bytes:
        """As stored: the operator's status or nil, amounts by number, digests. Short: Valkey keeps a hash small while
        no value of it is longer than 64 bytes."""
        amounts = {_AMOUNTS.index(name): text for name, text in self.amounts.items()}
        about = [self.by_operator, amounts, *map(bytes.fromhex, self.api_keys)]
        return bytes(msgpack.packb(about, use_bin_type=False))

    @classmethod
    def unpacked(cls, packed: bytes) -> About:
        """The opposite of ``packed``. Raises ``ValueError``, ``TypeError``, ``LookupError``."""
        about = msgpack.unpackb(packed, raw=True, strict_map_key=False)
        if not isinstance(about, list) or len(about) < 2:
            raise ValueError("its field about is no array of what it should have")
        by_operator, amounts, *digests = about
        if any(len(digest) != DIGEST_BYTES for digest in digests):
            raise ValueError("an API key that is no SHA-256")
        return cls(
            {_AMOUNTS[_index(number)]: text.decode() for number, text in amounts.items()},
            tuple(digest.hex() for digest in digests),
            None if by_operator is None else Status(by_operator),
        )


def _index(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number < len(_AMOUNTS):
        raise ValueError(f"{number!r} is no amount")
    return number


def packed_view(spec: AccountSpec, digits: int) -> bytes:
    """What a gateway shows of an account: ``[digits, currency, mode, rate per second as text, burst, day limit, ceiling
    or 0, whether all prices are constant]``. ``AccountView.from_view`` reads it.

    Raises:
        PriceError: the ceiling cannot be represented.
    """
    rate = spec.limits.per_second
    tables = [table for each in spec.subscriptions for table in each.prices.values()]
    view = [
        digits,
        spec.currency,
        spec.mode,
        format(rate, "f"),
        spec.limits.burst_allowed if rate else 0,
        spec.limits.per_day,
        max(0, spec.scaled_ceiling(digits) or 0),
        all(isinstance(table, Standard) for table in tables),
    ]
    return bytes(msgpack.packb(view))


def view_terms(packed: bytes) -> tuple[str, str, str]:
    """Currency, mode and rate per second of a view. Raises ``ValueError``, ``TypeError``."""
    _, currency, mode, rate, *_ = msgpack.unpackb(packed, raw=False)
    if not all(isinstance(each, str) for each in (currency, mode, rate)):
        raise ValueError("its field view has other values than texts")
    return currency, mode, rate
