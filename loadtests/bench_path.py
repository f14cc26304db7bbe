"""What a request costs in this process alone: the whole path with real parsers, ledger client and counters, but with
transports that only remember. No socket, no Valkey; so what remains is our own code, and a profiler sees nothing else.

    python -m loadtests.bench_path [--batch 32] [--accounts 1] [--rounds 30] [--profile] [--chain]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import hashlib
import pstats
import time
from typing import Any, cast

import msgpack
import uvloop

from sidecar.gateway.connection import ClientConnection
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.exchange.exchange import Exchange
from sidecar.gateway.gateway import Gateway
from sidecar.gateway.parameters import ProxySettings, UpstreamTarget
from sidecar.gateway.routes import Route, RouteTable
from sidecar.gateway.upstream import UpstreamConnection
from sidecar.identity.api_key import ApiKeyResolver
from sidecar.identity.chain import IdentityChain
from sidecar.identity.settings import ApiKeySettings
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.keys import Keys

KEY = "bench-key-0123456789abcdef"
REQUEST = (
    b"GET /open-banking/v3.1/aisp/accounts HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-API-Key: %b\r\n"
    b"User-Agent: loadtest\r\nAccept: */*\r\n\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 446\r\n\r\n" + b"x" * 446
VIEW = msgpack.packb([3, "GBP", "prepaid", "0", 0, 0, 10**12, True])


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...
    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Valkey:
    """Grants every hold of a batch, when told to."""

    closed = False

    def __init__(self) -> None:
        self.callback: Any = None
        self.payload = b""
        self.seen: set[str] = set()

    def send(self, payload: bytes, callback: Any) -> None:
        self.payload, self.callback = payload, callback

    def answer(self, batch: Any) -> None:
        callback, self.callback = self.callback, None
        answers: list[Any] = []
        for group in batch.groups.values():
            if group.holds:
                answers.append(False if group.account in self.seen else [VIEW, -1, -1, 1])
                self.seen.add(group.account)
            for hold in group.holds:
                answers += (0, 10**9, hold.units)
        callback(msgpack.packb([1, 0, answers, [], False]))


def key_of(account: int) -> bytes:
    return b"%b-%06d" % (KEY.encode(), account)


class Store:
    def __init__(self, accounts: int) -> None:
        self._accounts = {hashlib.sha256(key_of(n)).hexdigest(): f"tpp-{n:06d}" for n in range(accounts)}

    async def account_of(self, sha256_hex: str) -> str | None:
        return self._accounts.get(sha256_hex)


async def build(
    connections: int, accounts: int, chain: bool = False
) -> tuple[Gateway, list[ClientConnection], list[UpstreamConnection], Any, Valkey]:
    keys = Keys()
    ledger = LedgerClient(cast(Any, None), keys, LinkSettings(chain_key=KEY.encode() * 2 if chain else b""))
    link = ledger._make_link(0)
    ledger._links, ledger._only = [link], link
    valkey = Valkey()
    link._connection, link.epoch = cast(Any, valkey), 1
    identity = IdentityChain([ApiKeyResolver(ApiKeySettings(type="api_key"), Store(accounts), realm="bench")])
    route = Route("/open-banking/v3.1/aisp/accounts")
    context = GatewayContext(
        settings=ProxySettings(), routes=RouteTable([], route),
        identity=identity, ledger=ledger, trusts=lambda _: False,
    )  # fmt: skip
    gateway = Gateway(context)
    pool = gateway.context.destinations.fixed(UpstreamTarget("127.0.0.1", 1))
    clients = [ClientConnection(context, gateway, pool) for _ in range(connections)]
    for client in clients:
        client.connection_made(cast(Any, Transport()))
    upstreams = [UpstreamConnection(pool) for _ in range(connections)]
    for upstream in upstreams:
        upstream.connection_made(cast(Any, Transport()))
        pool.release(upstream)
    return gateway, clients, upstreams, link, valkey


async def main(
    batch: int, accounts: int, rounds: int, turns: int, profile: bool, body: int, chain: bool = False
) -> None:
    gateway, clients, upstreams, link, valkey = await build(batch, accounts, chain)
    requests = [REQUEST % key_of(number) for number in range(accounts)]
    if body:
        length = b"\r\nContent-Length: %d\r\n\r\n" % body
        requests = [
            request.replace(b"GET ", b"POST ").replace(b"\r\n\r\n", length) + bytes(body) for request in requests
        ]
    at = 0

    def ledger_turn() -> None:
        link._flush()
        while valkey.callback is not None:
            valkey.answer(link._flight)

    def turn() -> None:
        nonlocal at
        for client in clients:
            client.data_received(requests[at])
            at = at + 1 if at + 1 < accounts else 0
        ledger_turn()
        for upstream in upstreams:
            upstream.data_received(ANSWER)

    for request in requests:  # first sight of each key
        clients[0].data_received(request)
        while not isinstance(exchange := clients[0].relay, Exchange) or exchange.hold is None:
            await asyncio.sleep(0)
        ledger_turn()
        assert exchange.upstream is not None
        exchange.upstream.data_received(ANSWER)
    turn()
    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(turns):
            turn()
        best = min(best, time.process_time() - began)
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    done = sum(gateway.context.counters.requests.values())
    assert done >= rounds * turns * batch, done
    print(f"{best / (turns * batch) * 1e6:.2f} µs a request in this process (best of {rounds} rounds)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="requests in a turn of the event loop (default: 32)")
    parser.add_argument("--accounts", type=int, default=1, help="that call in turn (default: 1)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--turns", type=int, default=100, help="in a round")
    parser.add_argument("--body", type=int, default=0, help="bytes that each request posts; 0 (default) for GET")
    parser.add_argument("--profile", action="store_true", help="print where the time goes (which slows everything)")
    parser.add_argument("--chain", action="store_true", help="with a key for the chain through the outbox entries")
    arguments = parser.parse_args()
    uvloop.run(
        main(
            arguments.batch, arguments.accounts, arguments.rounds, arguments.turns, arguments.profile, arguments.body,
            arguments.chain,
        )
    )  # fmt: skip
