"""The names of all keys of the ledger in Valkey (docs/ledger.md, "Keys"). No other module spells a key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

FORMAT: Final = 2
"""Of what is stored (docs/ledger.md, "Format"). It is part of every key, so a release never reads another format's."""

PARTITIONS: Final = 64
PARTITIONS_MAX: Final = 1024
"""As in lua/lib/names.lua: the number of a home partition is part of an epoch."""

FORGET_MS: Final = 2_592_000_000
"""As in lua/lib/names.lua: for how long the number of an instance that is gone stays known, 30 days."""

PARTITIONS_SHOWN_MAX: Final = 24

FIRST_FORMAT_PARTITIONS: Final = 16
"""The default of release 0.2, whose ledger had format 1."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix. ``partitions`` is part of the data's layout: changing it hides accounts."""

    prefix: str = "qs"
    partitions: int = PARTITIONS
    _tags: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_tags", tuple(f"{self.prefix}:v{FORMAT}:{{p{p:02d}}}:" for p in range(self.partitions))
        )

    def partition(self, account: str) -> int:
        return crc32(account.encode()) % self.partitions

    def state(self, account: str) -> str:
        """What requests need and change of an account."""
        return f"{self._tags[self.partition(account)]}state:{account}"

    def account(self, account: str) -> str:
        """All else of an account."""
        return f"{self._tags[self.partition(account)]}account:{account}"

    def meta(self, partition: int) -> str:
        """What a partition says of itself: format, partitions, generation, and the departed instances."""
        return f"{self._tags[partition]}meta"

    def clock(self, partition: int) -> str:
        """The latest instant that a partition has seen."""
        return f"{self._tags[partition]}clock"

    def first_format(self, partition: int, name: str) -> str:
        """A key of release 0.2."""
        return f"{self.prefix}:{{p{partition:02d}}}:{name}"

    def accounts(self, partition: int) -> str:
        return f"{self._tags[partition]}accounts"

    def instance(self, partition: int, instance: str) -> str:
        return f"{self._tags[partition]}instance:{instance}"

    def alive(self, partition: int) -> str:
        return f"{self._tags[partition]}alive"

    def outbox(self, partition: int) -> str:
        return f"{self._tags[partition]}outbox"

    def dead_letters(self, partition: int) -> str:
        """Usage events that OpenMeter refuses for good."""
        return f"{self._tags[partition]}dead-letters"

    def sent(self, partition: int) -> str:
        """Outbox entries that OpenMeter has accepted, kept for a while."""
        return f"{self._tags[partition]}sent"

    def refused(self, partition: int) -> str:
        """Settles that no account can take."""
        return f"{self._tags[partition]}refused"

    def audit_log(self, partition: int) -> str:
        """What operators did."""
        return f"{self._tags[partition]}audit-log"

    def audited_hour(self, hour: int) -> str:
        """Notes of the audit about an hour. ``hour``: hours since the Unix epoch."""
        return f"{self._tags[0]}audited:{hour}"

    def import_notes(self, partition: int) -> str:
        """How far an import has come; gone when it has finished."""
        return f"{self._tags[partition]}import"

    def billing(self, account: str) -> str:
        """The reconcile state of an account."""
        return f"{self._tags[self.partition(account)]}billing:{account}"

    def sync(self, account: str) -> str:
        """The sync state of an account: pushed usage and frozen events."""
        return f"{self._tags[self.partition(account)]}sync:{account}"

    def absent(self, account: str) -> str:
        """A mark that Lago does not know the account; it goes by itself."""
        return f"{self._tags[self.partition(account)]}absent:{account}"

    def reload_requests(self) -> str:
        """Accounts, wallets, plans and subscriptions that the control plane is to read again."""
        return f"{self._tags[0]}reload-requests"

    def scheduled_reloads(self) -> str:
        """Reload requests that are to be made at an instant."""
        return f"{self._tags[0]}scheduled-reloads"

    def lease(self, name: str) -> str:
        return f"{self._tags[0]}lease:{name}"

    def webhooks_seen(self) -> str:
        """Digests of the webhooks that were acted upon."""
        return f"{self._tags[0]}webhooks-seen"

    def api_keys(self, sha256: bytes) -> str:
        """The hash that has an API key, one of many small ones: Valkey stores those in a third of the memory."""
        return self.api_keys_hash(crc32(sha256) % self.partitions, sha256[0])

    def api_keys_hash(self, partition: int, first: int) -> str:
        """The hash of a partition that has those API keys whose SHA-256 has this first byte."""
        return f"{self._tags[partition]}apikeys:{first:02x}"


def partitions_text(partitions: Sequence[int]) -> str:
    """Numbers of partitions for people: ``1, 2, 3``, of many the first ones."""
    shown = ", ".join(map(str, partitions[:PARTITIONS_SHOWN_MAX]))
    more = len(partitions) - PARTITIONS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def idempotency_digest(account: str, scope: bytes) -> bytes:
    """16 bytes. ``scope``: what makes two calls the same one: method, path and the caller's key. Hashed, since it is
    the caller's to choose."""
    return hashlib.blake2b(account.encode() + b"\0" + scope, digest_size=16).digest()
