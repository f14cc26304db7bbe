"""Reads the counts of a run: admin side or Valkey for the ledger, Valkey for events, OpenMeter for what it counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, cast
from urllib.parse import quote

import orjson
import redis

from loadtests.scenarios.reconciliation import Account, Counts, Events, Ledger, Meters, UsageEvent
from loadtests.scenarios.target import CannotRun, Secret, Target
from loadtests.scenarios.web import ask, place
from sidecar.ledger.accounts.account_state import FIELDS, decode_account
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.events import EventAttributes, MalformedEntry, decode_entry

PAGE = 2_000
ATTRIBUTES = EventAttributes("", "")


class Sources:
    """All that a target gives access to. ``mark()`` first: events are those since then."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._since_ms = 0

    def mark(self) -> None:
        """Raises CannotRun: Valkey was given and cannot be reached."""
        if self._target.valkey.value:
            with valkey(self._target.valkey) as client:
                seconds, micros = client.time()
                self._since_ms = seconds * 1000 + micros // 1000

    def counts(self) -> Counts:
        """One look. Raises CannotRun."""
        return Counts(self._ledger(), self._events(), self._meters())

    def _ledger(self) -> Ledger | None:
        target = self._target
        if target.admin:
            return {account: account_by_admin(target, account) for account in target.accounts}
        if target.valkey.value:
            with valkey(target.valkey) as client:
                return {account: account_by_valkey(client, account) for account in target.accounts}
        return None

    def _events(self) -> Events | None:
        if not self._target.valkey.value:
            return None
        with valkey(self._target.valkey) as client:
            return read_events(client, self._since_ms, frozenset(self._target.accounts))

    def _meters(self) -> Meters | None:
        target = self._target
        if not target.openmeter:
            return None
        counted: dict[str, int] = {}
        for meter in target.meters:
            url = f"{target.openmeter}/api/v1/meters/{quote(meter, safe='')}/query?groupBy=subject&groupBy=metric"
            found = ask("OpenMeter", "GET", url, token=target.openmeter_token)
            for row in found["data"]:
                # A meter counts every event of its type, so events of other metrics meet in it.
                mine = row.get("subject") in target.accounts and row.get("groupBy", {}).get("metric") == meter
                if mine:
                    counted[row["subject"]] = counted.get(row["subject"], 0) + int(row["value"])
        return counted


def account_by_admin(target: Target, account: str) -> Account:
    found = ask(
        "the admin side", "GET", f"{target.admin}/v1/accounts/{quote(account, safe='')}", token=target.admin_token
    )
    return Account(
        settled=sum(metric["settled"] for metric in found["metrics"]),
        held=sum(metric["held"] for metric in found["metrics"]),
        period_start_ms=found["period_start_ms"],
        available=None if found["available"] is None else Decimal(found["available"]),
    )


def account_by_valkey(client: redis.Redis, account: str) -> Account:
    try:
        keys = Keys()
        packed, fields = (
            cast(Any, client).get(keys.state(account)),
            cast(Any, client).hmget(keys.account(account), *FIELDS),
        )
        state = decode_account(account, packed, fields)
    except MalformedAccount as error:
        raise CannotRun(str(error)) from None
    if state.version == 0:
        raise CannotRun(f"the ledger has no account {account!r} (its prefix may be another than qs)")
    usages = [usage for each in state.subscriptions for usage in each.usages]
    return Account(
        settled=sum(usage.settled for usage in usages),
        held=sum(usage.held for usage in usages),
        period_start_ms=state.period_start_ms,
    )


def account_of_key(client: redis.Redis, digest: str) -> str | None:
    sha256 = bytes.fromhex(digest)
    found = cast(Any, client).hget(Keys().api_keys(sha256), sha256)
    return found.decode() if isinstance(found, bytes) else None


def read_events(client: redis.Redis, since_ms: int, accounts: frozenset[str]) -> Events:
    """The events of these accounts that were written since then. An entry moves from the outbox to the tail at some
    instant, so the tail is read after the outbox, and what was met in both counts where it went.
    """
    keys = Keys()
    waiting: dict[bytes, list[UsageEvent]] = {}
    accepted: dict[bytes, list[UsageEvent]] = {}
    dead = 0
    for name, found in ((keys.outbox, waiting), (keys.sent, accepted)):
        for partition in range(keys.partitions):
            for id_, fields in _entries(client, name(partition), since_ms):
                events = _events_of(fields, since_ms, accounts)
                if events:
                    found[b"%d/%b" % (partition, id_)] = events
    for partition in range(keys.partitions):
        for _, fields in _entries(client, keys.dead_letters(partition), since_ms):
            dead += len(_events_of(fields, since_ms, accounts))
    moved = {event.id for events in accepted.values() for event in events}
    still = [event for events in waiting.values() for event in events if event.id not in moved]
    return Events(tuple(still), tuple(event for events in accepted.values() for event in events), dead)


def _entries(client: redis.Redis, stream: str, since_ms: int) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    start: str | bytes = f"{max(0, since_ms)}-0"
    while entries := _page(client, stream, start):
        yield from entries
        start = b"(" + entries[-1][0]


def _page(client: redis.Redis, stream: str, start: str | bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast(Any, client).xrange(stream, min=start, count=PAGE) or []


def _events_of(fields: dict[bytes, bytes], since_ms: int, accounts: frozenset[str]) -> list[UsageEvent]:
    if int(fields.get(b"t", b"0")) < since_ms:
        return []
    try:
        bodies = map(orjson.loads, decode_entry(fields, ATTRIBUTES).bodies)
        return [
            UsageEvent(body["id"], body["subject"], body["data"]["units"])
            for body in bodies
            if body["subject"] in accounts
        ]
    except MalformedEntry:
        return []


@contextmanager
def valkey(url: Secret) -> Iterator[redis.Redis]:
    """A client of one server. Raises CannotRun: it cannot be reached, or the URL is none of a single server."""
    scheme, _, rest = url.value.partition("://")
    usual = {"valkey": "redis", "redis": "redis", "valkeys": "rediss", "rediss": "rediss", "valkey+unix": "unix",
             "redis+unix": "unix", "unix": "unix"}  # fmt: skip
    if scheme not in usual:
        raise CannotRun(f"--valkey: {scheme}:// is not the URL of a single server; without it --admin can be used")
    client: redis.Redis = redis.Redis.from_url(f"{usual[scheme]}://{rest}", socket_timeout=10, socket_connect_timeout=5)
    try:
        with client:
            yield client
    except (redis.RedisError, OSError) as error:
        raise CannotRun(f"Valkey at {place(url.value)}: {error}") from None
