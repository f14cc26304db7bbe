"""A ledger of release 0.2 on a real Valkey, made and used by the scripts of that release (release_0_2/)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import redis

from tests.support.ledger_driver import call_batch
from tests.support.ledger_state import pack, unpack

SCRIPTS = Path(__file__).parent / "release_0_2"
_LIBRARY = ("names", "clock", "pricing", "account", "hours")
_MOVABLE_CLOCK = """
local function clock()
  local us = number(call('GET', 'test:first_clock_us'))
  return us, floor(us / 1000)
end
"""
CLOCK_KEY = "test:first_clock_us"
IDEMPOTENCY_TTL_MS = 86_400_000


@cache
def text_of(name: str, movable_clock: bool) -> str:
    """A script as release 0.2 composed it."""
    parts = [(SCRIPTS / "lib" / f"{part}.lua").read_text() for part in _LIBRARY]
    text = "\n".join([*parts, (SCRIPTS / f"{name}.lua").read_text()])
    if movable_clock:
        shipped = parts[1]
        assert text.count(shipped) == 1
        text = text.replace(shipped, _MOVABLE_CLOCK)
    return text


@dataclass
class FirstLedger:
    """``now_ms``: the clock, which is moved by hand. ``now_ms`` None: Valkey's."""

    client: redis.Redis
    partitions: int = 16
    now_ms: int | None = None
    prefix: str = "qs"
    epochs: dict[tuple[str, int], int] = field(default_factory=dict)
    seqs: dict[tuple[str, int], int] = field(default_factory=dict)

    def name(self, partition: int, name: str) -> str:
        return f"{self.prefix}:{{p{partition:02d}}}:{name}"

    def partition(self, account: str) -> int:
        return crc32(account.encode()) % self.partitions

    def account_key(self, account: str) -> str:
        return self.name(self.partition(account), f"account:{account}")

    def register(self, instance: str, home: int = 0) -> None:
        keys = [self.name(home, f"instance:{instance}"), self.name(home, "alive")]
        self.epochs[instance, home], self.seqs[instance, home] = self.run("register", keys, [instance])

    def heartbeat(self, instance: str, home: int = 0) -> int:
        keys = [self.name(home, f"instance:{instance}"), self.name(home, "alive")]
        return int(self.run("heartbeat", keys, [instance, self.epochs[instance, home]]))

    def load(
        self, account: str, prices: dict[str, list[Any]], start_ms: int, end_ms: int, *,
        ceiling: int | None = 1000, version: int = 0, status: int = 0, counts_unsettled: bool = True,
        rate_per_second: float = 0, burst: int = 0, day_limit: int = 0, following: Sequence[int] = (),
        digits: int = 2, unsettled: int | None = None, fence: int | None = None, api_keys: Sequence[str] = (),
        by_operator: str = "", currency: str = "GBP", mode: str = "prepaid",
        amounts: dict[str, str] | None = None, expected_digits: int | None = None,
    ) -> int:  # fmt: skip
        """As the loader of release 0.2 did it, with its ``info`` and its API keys."""
        info = {
            "version": 0, "digits": digits, "currency": currency, "exponent": 2, "mode": mode,
            "status": ("active", "suspended", "closed")[status], "ceiling": ceiling,
            "constant_prices": all(table[0] == "s" for table in prices.values()),
            "rate_per_second": float(rate_per_second), "burst": burst, "day_limit": day_limit,
            "amounts": amounts or {"funds": "10.00", "overdraft": "0"}, "api_keys": list(api_keys),
        } | ({"by_operator": by_operator} if by_operator else {})  # fmt: skip
        interval = -(-1_000_000 // int(rate_per_second)) if rate_per_second >= 1 else 0
        request = [
            version, account, status, False if ceiling is None else ceiling, int(counts_unsettled), interval, burst,
            day_limit, prices, json.dumps(info, separators=(",", ":")), start_ms, end_ms, list(following),
            False if unsettled is None else unsettled, digits, digits if expected_digits is None else expected_digits,
            False, False if fence is None else fence, False,
        ]  # fmt: skip
        for digest in api_keys:
            self.client.set(self.name(crc32(digest.encode()) % self.partitions, f"apikey:{digest}"), account)
        keys = [self.account_key(account), self.name(self.partition(account), "accounts")]
        word, loaded, *_ = self.run("load", keys, [pack(request)])
        assert word == b"OK", (word, loaded)
        return int(loaded)

    def send(
        self, instance: str, account: str, metric: str = "api_calls", *, home: int = 0, settled: int = 0,
        released: int = 0, late: int = 0, holds: Sequence[int] = (), once: str = "",
    ) -> list[int]:  # fmt: skip
        """One batch of one group; with ``once``, the settled units are charged under an idempotency key. Answers the
        codes of the holds, or of the settle under a key."""
        if (instance, home) not in self.epochs:
            self.register(instance, home)
        self.seqs[instance, home] += 1
        epoch, seq = self.epochs[instance, home], self.seqs[instance, home]
        event = json.dumps([account, metric, settled + late, "/accounts", "GET", 200, 1.5, None, None])
        keys = [self.name(home, f"instance:{instance}"), self.name(home, "outbox"), self.account_key(account)]
        singles: list[Any] = []
        events = event if settled + late and not once else ""
        if once:
            keys.append(self.name(self.partition(account), f"idem:{first_digest(account, once)}"))
            singles = [[1, 0, metric, settled, 1, 2, event]]
        head = [
            epoch, seq, f"{instance}.{home:02d}", 1, events, IDEMPOTENCY_TTL_MS, int(not once), [metric], singles
        ]  # fmt: skip
        argv = [b"".join(map(pack, head))]
        if not once:
            parts = [1, 0, 1, settled, released, late, -len(holds), *holds]
            argv.append(b"".join(map(pack, parts)))
        self._set_clock()
        reply = unpack(call_batch(self.client, text_of("batch", self.now_ms is not None), keys, *argv))
        return [reply[3][0][3]] if once else list(reply[2][1::3]) if holds else []

    def spend(self, instance: str, account: str, units: int, metric: str = "api_calls", home: int = 0) -> None:
        """A hold and its settle."""
        assert self.send(instance, account, metric, home=home, holds=[units]) == [0]
        self.send(instance, account, metric, home=home, settled=units)

    def run(self, name: str, keys: list[str], argv: list[Any]) -> Any:
        self._set_clock()
        return self.client.eval(text_of(name, self.now_ms is not None), len(keys), *keys, *argv)

    def _set_clock(self) -> None:
        if self.now_ms is not None:
            self.client.set(CLOCK_KEY, self.now_ms * 1000)


def first_digest(account: str, scope: str) -> str:
    """As release 0.2 named an idempotency key."""
    return hashlib.blake2b(account.encode() + b"\0" + scope.encode(), digest_size=16).hexdigest()
