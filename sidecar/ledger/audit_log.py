"""The audit log: what operators did to the ledger, one stream for each partition (docs/ledger.md, "Audit log")."""

from __future__ import annotations

import getpass
import heapq
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson

from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each, raise_first
from sidecar.valkey.topology import Client

ENTRIES_MAX: Final = 20_000
"""Of one partition; the oldest go."""
TEXT_LENGTH_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """``who`` did ``what`` to ``account`` ("": to the ledger), and ``why``. ``before``, ``after``: what it changed."""

    time_ms: int
    who: str
    what: str
    account: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    why: str


def operator() -> str:
    """Who runs this process: SIDECAR_OPERATOR, or the user and the host."""
    named = os.environ.get("SIDECAR_OPERATOR", "").strip()
    if named:
        return named[:200]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class AuditLog:
    """The log of one ledger. All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"AuditLog({self._keys.prefix})"

    async def add(
        self,
        what: str,
        account: str = "",
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        why: str = "",
        who: str | None = None,
    ) -> None:
        """Adds a line; its time is Valkey's."""
        partition = self._keys.partition(account) if account else 0
        fields = {
            "who": who or operator(),
            "what": what,
            "account": account,
            "before": orjson.dumps(before or {}, default=str).decode(),
            "after": orjson.dumps(after or {}, default=str).decode(),
            "why": why[:TEXT_LENGTH_MAX],
        }
        args = [part for field in fields.items() for part in field]
        key = self._keys.audit_log(partition)
        call = Call(key, ("XADD", key, "MAXLEN", "~", ENTRIES_MAX, "*", *args))
        raise_first(await call_each(self._client, [call]))

    async def read(self, account: str = "", limit: int = 100) -> tuple[AuditEntry, ...]:
        """The newest entries of all, or of one account, newest first."""
        partitions = [self._keys.partition(account)] if account else range(self._keys.partitions)
        # Of one account there may be others' lines in between.
        count = ENTRIES_MAX if account else limit
        keys = [self._keys.audit_log(partition) for partition in partitions]
        pages = await call_each(self._client, [Call(key, ("XREVRANGE", key, "+", "-", "COUNT", count)) for key in keys])
        raise_first(pages)
        merged = heapq.merge(*(_entries(page) for page in pages), key=lambda entry: -entry.time_ms)
        return tuple(islice((entry for entry in merged if account in ("", entry.account)), limit))


def _entries(page: Any) -> Iterator[AuditEntry]:
    for id_, fields in page:
        # redis-py gives a list of pairs or a flat list, by the way the command was sent.
        pairs = dict(fields) if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        text = {name.decode(): value.decode("utf-8", "replace") for name, value in pairs.items()}
        yield AuditEntry(
            time_ms=int(id_.partition(b"-")[0]),
            who=text.get("who", ""),
            what=text.get("what", ""),
            account=text.get("account", ""),
            before=_object(text.get("before")),
            after=_object(text.get("after")),
            why=text.get("why", ""),
        )


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"text": text}
    return value if isinstance(value, dict) else {"text": text}
