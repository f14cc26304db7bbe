"""What the keys of a ledger are, by their names."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.transfer.access import Access

ACCOUNT_KINDS: Final = ("billing", "sync", "absent")
"""Keys of one account beside its state and its hash."""

SINGLE_KINDS: Final = ("reload-requests", "scheduled-reloads", "webhooks-seen")
"""Sorted sets of which a ledger has one each."""

DROPPED_KINDS: Final = ("meta", "clock", "instance", "alive", "lease", "import")
"""What another ledger has anew."""


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """``rest``: of which account or hour, or ""."""

    key: str
    partition: int
    kind: str
    rest: str


async def key_pages(access: Access, keys: Keys) -> AsyncIterator[list[ParsedKey]]:
    """All keys of the ledger. Raises as ``Access.key_pages``."""
    pattern = re.compile(
        rf"{re.escape(keys.prefix)}:v{FORMAT}:\{{p(\d{{2,4}})\}}:([a-z-]+)(?::(.*))?".encode(), re.DOTALL
    )
    async for page in access.key_pages(f"{keys.prefix}:v{FORMAT}:{{p*}}:*"):
        found = []
        for key in page:
            if match := pattern.fullmatch(key):
                text, rest = (
                    key.decode("utf-8", "surrogateescape"),
                    (match[3] or b"").decode("utf-8", "surrogateescape"),
                )
                found.append(ParsedKey(text, int(match[1]), match[2].decode(), rest))
        yield found


def value_key(keys: Keys, kind: str, rest: str) -> str:
    """The key of a value that is written as ``hash``, ``string`` or ``zset``. Raises ``KeyError``, ``ValueError``."""
    match kind:
        case "billing":
            return keys.billing(rest)
        case "sync":
            return keys.sync(rest)
        case "absent":
            return keys.absent(rest)
        case "audited":
            return keys.audited_hour(int(rest))
    return {
        "reload-requests": keys.reload_requests(), "scheduled-reloads": keys.scheduled_reloads(),
        "webhooks-seen": keys.webhooks_seen(),
    }[kind]  # fmt: skip


def stream_key(keys: Keys, name: str, partition: int) -> str:
    """The key of a stream. Raises ``KeyError``."""
    return {
        "outbox": keys.outbox, "sent": keys.sent, "dead-letters": keys.dead_letters, "refused": keys.refused,
        "audit-log": keys.audit_log,
    }[name](partition)  # fmt: skip
