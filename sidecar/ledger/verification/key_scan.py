"""Looks at the name of every key of a ledger: what belongs to no partition, and what no index has."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import RedisCluster

from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.verification.pace import Pace
from sidecar.ledger.verification.verify_report import Check, Findings
from sidecar.valkey.calls import Call, call_each, raise_first
from sidecar.valkey.topology import Client

SCAN_COUNT: Final = 1_000
LOOKS: Final = 500
"""Accounts that are looked up at once."""

_ACCOUNT_KINDS: Final = ("state", "account", "billing", "sync", "absent")
_SINGLE_KINDS: Final = frozenset((
    "meta", "clock", "accounts", "alive", "outbox", "sent", "dead-letters", "refused", "audit-log", "import",
    "reload-requests",
    "scheduled-reloads", "webhooks-seen",
))  # fmt: skip
_OTHER_KINDS: Final = ("instance", "apikeys", "audited", "lease")


@dataclass(slots=True)
class ScannedKeys:
    """``instances``: by partition, those with a record. ``api_keys``: the hashes of API keys. ``unlisted``: by
    partition, accounts with a key that the index does not have."""

    instances: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    api_keys: set[str] = field(default_factory=set)
    unlisted: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))


async def scan_pages(client: Client, pattern: str, pace: Pace) -> AsyncIterator[list[bytes]]:
    """The names of all keys of all servers that match, a page at a time; one may come twice.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    nodes: list[Any] = [None]
    if isinstance(client, RedisCluster):
        await client.initialize()
        nodes = list(client.get_primaries())
    command: Any = client.execute_command
    for node in nodes:
        options = {} if node is None else {"target_nodes": node}
        cursor = 0
        while True:
            await pace.wait()
            reply: Any = await command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, **options)
            position, names = reply
            cursor = int(next(iter(position.values())) if isinstance(position, dict) else position)
            if names:
                yield list(names)
            if cursor == 0:
                break


def ledger_pattern(keys: Keys) -> str:
    """What SCAN takes for every key of this format."""
    prefix = re.sub(r"([\\*?\[\]^])", r"\\\1", keys.prefix)
    return f"{prefix}:v{FORMAT}:*"


def parsed(keys: Keys, name: bytes) -> tuple[int, str, str] | None:
    """Partition, kind and the rest of a key's name, None if it is none of a ledger's."""
    match = re.fullmatch(
        rf"{re.escape(keys.prefix)}:v{FORMAT}:\{{p([0-9]{{2,4}})\}}:([a-z-]+)(?::(.*))?",
        name.decode("utf-8", "surrogateescape"), re.DOTALL,
    )  # fmt: skip
    return None if match is None else (int(match[1]), match[2], match[3] or "")


async def check_keys(client: Client, keys: Keys, findings: Findings, pace: Pace) -> ScannedKeys:
    """Goes through all keys. Raises as :func:`scan_pages`."""
    found = ScannedKeys()
    foreign: defaultdict[int, list[str]] = defaultdict(list)
    async for names in scan_pages(client, ledger_pattern(keys), pace):
        accounts: set[str] = set()
        for name in names:
            text = name.decode("utf-8", "backslashreplace")
            key = parsed(keys, name)
            if key is None:
                findings.note(f"a key that is none of a ledger's: {text[:100]}")
                continue
            partition, kind, rest = key
            if partition >= keys.partitions:
                foreign[partition].append(text)
            elif kind in _ACCOUNT_KINDS:
                if keys.partition(rest.encode("utf-8", "surrogateescape").decode("utf-8", "replace")) != partition:
                    right = f"partition {keys.partition(rest)}" if rest.isprintable() else "another partition"
                    findings.add(
                        Check.KEYS, text, "the account belongs to another partition", right, f"partition {partition}"
                    )
                elif kind in ("state", "account"):
                    accounts.add(rest)
            elif kind == "instance":
                found.instances[partition].add(rest)
            elif kind == "apikeys":
                found.api_keys.add(text)
            elif kind not in _SINGLE_KINDS and kind not in _OTHER_KINDS:
                findings.note(f"a key of an unknown kind: {text[:100]}")
        await _look_up(client, keys, sorted(accounts), found)
    for partition, texts in sorted(foreign.items()):
        expected = f"partitions 0 to {keys.partitions - 1}"
        what = f"{len(texts)} keys of a partition that this ledger does not have"
        findings.add(Check.KEYS, f"partition {partition}", what, expected, ", ".join(sorted(texts)[:3]))
    return found


async def _look_up(client: Client, keys: Keys, accounts: list[str], found: ScannedKeys) -> None:
    for start in range(0, len(accounts), LOOKS):
        some = accounts[start : start + LOOKS]
        indexes = [keys.accounts(keys.partition(account)) for account in some]
        replies = await call_each(
            client, [Call(index, ("ZSCORE", index, id_)) for index, id_ in zip(indexes, some, strict=True)]
        )
        raise_first(replies)
        for account, score in zip(some, replies, strict=True):
            if score is None:
                found.unlisted[keys.partition(account)].add(account)
