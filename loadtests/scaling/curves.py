"""The curves. Each starts a Valkey, an upstream and gateways of its own; nothing of one is there in the next."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import redis

from loadtests.kit import rig
from loadtests.kit.processes import RigError, resident_mb, running
from loadtests.scaling.curve import CPU, MEMORY, P50, P99, RATE, USUAL, VALKEY, Curve, Figure, Figures, Ground, Measure
from loadtests.scaling.driving import Traffic, drive, send
from sidecar.ledger.keys import Keys

HERE = Path(__file__).parent
KEY_FORM = "bench-key-%010d"
LOADED_AT_ONCE = 20_000
EVENT = [rig.ACCOUNT, "api_calls", 1, rig.CHARGED, "GET", 200, 2.345, "93bac548-d2de-4546-b106-880a5018460d", None]
EVENTS_AN_ENTRY = 300
REQUESTS_A_TIER = 1000
PUBLISHED_EVENTS = 300_000
IDLE_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Stage:
    valkey: rig.ValkeyServer
    upstream: int
    ground: Ground

    def config(self, name: str = "gateway", **sections: object) -> Path:
        path = self.ground.directory / f"{name}.yaml"
        return rig.gateway_config(path, self.upstream, self.valkey.url, **sections)

    def load(self, config: Path, accounts: list[dict[str, Any]] | None = None) -> None:
        rig.load_accounts(config, rig.accounts_file(self.ground.directory / "accounts.yaml", accounts))

    def gateway(self, config: Path) -> rig.GatewayProcess:
        return self.ground.stack.enter_context(rig.gateway(config))

    def usual(self) -> rig.GatewayProcess:
        """A gateway with the one usual account."""
        config = self.config()
        gateway = self.gateway(config)
        self.load(config)
        return gateway

    def settled(self) -> int:
        return rig.settled(self.valkey.client)


def stage(ground: Ground) -> Stage:
    valkey = ground.stack.enter_context(rig.valkey(ground.directory / "valkey"))
    return Stage(valkey, ground.stack.enter_context(rig.upstream()), ground)


def account(name: str, key: str, prices: dict[str, Any]) -> dict[str, Any]:
    """An entry of an accounts file, with plenty of credit."""
    return {
        "id": name, "mode": "prepaid", "currency": "GBP", "funds": "1000000000", "prices": prices,
        "period": {"every": "month"}, "api_keys": [{"key": key}],
    }  # fmt: skip


# accounts


def open_accounts(ground: Ground, points: tuple[int, ...]) -> Measure:
    """All accounts are in the ledger; traffic goes over the first N of them, each in turn. The gateway's cache of keys
    has room for all and has seen all before anything is measured."""
    here, most = stage(ground), max(points)
    names = [f"tpp-{number:06d}" for number in range(most)]
    config = here.config(identity=[{"type": "api_key", "cache_entries": most + 1, "ttl_s": 3600}])
    entries = [account(name, KEY_FORM % number, rig.PRICES) for number, name in enumerate(names)]
    gateway = here.gateway(config)
    for at in range(0, most, LOADED_AT_ONCE):
        here.load(config, entries[at : at + LOADED_AT_ONCE])

    def over(count: int) -> Traffic:
        env = {"ACCOUNTS": str(count), "TARGET": rig.CHARGED, "KEY": KEY_FORM}
        return Traffic(script=HERE / "wrk_keys.lua", env=env, fields={})

    seconds, seen = 3, 0
    while seen < most:
        # wrk begins with the first account each time, so it has to go once round in one run.
        seen = send([gateway], over(most), seconds)[0].answers
        seconds *= 2

    def measure(point: int) -> Figures:
        client = here.valkey.client
        rig.forget_events(client)
        send([gateway], over(point), 1)
        return drive(
            [gateway], here.valkey.pid, over(point), ground.seconds,
            lambda: rig.settled_by_all(client, names[:point]),
        )  # fmt: skip

    return measure


# connections


def open_connections(ground: Ground, points: tuple[int, ...]) -> Measure:
    """64 connections are busy (fewer if there are fewer), the others have made one request and say nothing more. A
    gateway is started for each measurement, since memory that was given back once is not seen to be taken again."""
    here = stage(ground)
    limits = {"connections_max": max(points) * 5 // 4 + 1000, "idle_timeout_ms": 3_600_000}
    config = here.config(limits=limits)
    here.load(config)

    def measure(point: int) -> Figures:
        busy = min(point, 64)
        with rig.gateway(config) as gateway:
            found = {"idle_mb": resident_mb([gateway.pid])}
            traffic = Traffic(connections=busy)
            send([gateway], traffic, 1)
            before = resident_mb([gateway.pid])
            with idle_connections(gateway.port, point - busy):
                if point > busy:
                    found["connection_kb"] = (resident_mb([gateway.pid]) - before) * 1e6 / 1024 / (point - busy)
                rig.forget_events(here.valkey.client)
                return {**drive([gateway], here.valkey.pid, traffic, ground.seconds, here.settled), **found}

    return measure


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """So many connections that have made a request each.

    Raises:
        RigError: they cannot be had.
    """
    if not count:
        yield
        return
    command = [sys.executable, "-m", "loadtests.kit.idle", str(port), str(count), rig.FREE]
    with running(command) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            raise RigError(f"{count} idle connections could not be opened; the lines above say why")
        yield


# bodies


def open_bodies(ground: Ground, _points: tuple[int, ...]) -> Measure:
    """Answers of N bytes, over 16 connections."""
    return _sized(ground, lambda size: Traffic(path=f"/bytes/{size}", connections=16))


def open_uploads(ground: Ground, _points: tuple[int, ...]) -> Measure:
    """Requests of N bytes, over 16 connections."""
    script = HERE / "wrk_upload.lua"
    return _sized(ground, lambda size: Traffic("/bytes/0", connections=16, script=script, env={"SIZE": str(size)}))


def _sized(ground: Ground, traffic_of: Callable[[int], Traffic]) -> Measure:
    here = stage(ground)
    gateway = here.usual()

    def measure(point: int) -> Figures:
        rig.forget_events(here.valkey.client)
        traffic = traffic_of(point)
        send([gateway], traffic, 1)
        return drive([gateway], here.valkey.pid, traffic, ground.seconds, here.settled)

    return measure


# tiers


def table_of(tiers: int) -> dict[str, Any]:
    """Graduated prices of so many tiers, each of which ends after some requests, so that traffic walks through them."""
    steps: list[dict[str, Any]] = [
        {"up_to": (number + 1) * REQUESTS_A_TIER, "unit": f"0.{tiers - number:04d}"} for number in range(tiers - 1)
    ]
    return {"api_calls": {"model": "graduated", "tiers": [*steps, {"unit": "0.0001"}]}}


def open_tiers(ground: Ground, points: tuple[int, ...]) -> Measure:
    """Each measurement has an account of its own, which begins in the first tier and walks into the next every 1,000
    requests."""
    here = stage(ground)
    config = here.config()
    gateway = here.gateway(config)
    used = dict.fromkeys(points, 0)

    def measure(point: int) -> Figures:
        used[point] += 1
        name = f"tpp-{point}-{used[point]}"
        key = f"bench-key-{point:04d}-{used[point]:06d}"
        here.load(config, [account(name, key, table_of(point))])
        rig.forget_events(here.valkey.client)
        traffic = Traffic(fields={"X-API-Key": key, "User-Agent": "loadtest", "Accept": "*/*"})
        return drive(
            [gateway], here.valkey.pid, traffic, ground.seconds, lambda: rig.settled(here.valkey.client, name)
        )  # fmt: skip

    return measure


# backlog


def fill(client: redis.Redis, events: int) -> None:
    """Puts so many events into the outbox, 300 an entry as under load."""
    keys, text = Keys(), orjson.dumps([EVENT] * EVENTS_AN_ENTRY)
    pipeline = client.pipeline(transaction=False)
    for number in range(-(-events // EVENTS_AN_ENTRY)):
        fields: dict[Any, Any] = {"o": "backlog", "q": number, "t": 1_767_225_600_000, "e": text}
        pipeline.xadd(keys.outbox(number % keys.partitions), fields)
        if number % 200 == 199:
            pipeline.execute()
    pipeline.execute()


def open_backlog(ground: Ground, _points: tuple[int, ...]) -> Measure:
    """So many events wait in the outbox, which nobody empties."""
    here = stage(ground)
    gateway = here.usual()

    def measure(point: int) -> Figures:
        client = here.valkey.client
        rig.forget_events(client)
        send([gateway], Traffic(), 1)
        fill(client, point)
        time.sleep(1.5)  # Valkey writes what it got to its file
        found = drive([gateway], here.valkey.pid, Traffic(), ground.seconds, here.settled)
        return {**found, "valkey_mb": client.info("memory")["used_memory"] / 1e6}

    return measure


# gateways


def open_gateways(ground: Ground, points: tuple[int, ...]) -> Measure:
    """64 connections in all, each gateway has its part of them. One account, which all charge."""
    here = stage(ground)
    config = here.config()
    here.load(config)
    gateways = [here.gateway(config) for _ in range(max(points))]

    def measure(point: int) -> Figures:
        rig.forget_events(here.valkey.client)
        send(gateways[:point], Traffic(), 1)
        return drive(gateways[:point], here.valkey.pid, Traffic(), ground.seconds, here.settled)

    return measure


# publisher


def open_publisher(ground: Ground, _points: tuple[int, ...]) -> Measure:
    """300,000 events in the outbox, N an entry, as fast as they go."""

    def measure(point: int) -> Figures:
        command = [sys.executable, "-m", "loadtests.bench_publisher", "--json", "--per-entry", str(point)]
        done = subprocess.run(
            [*command, "--events", str(PUBLISHED_EVENTS)], capture_output=True, text=True, timeout=600
        )  # fmt: skip
        line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
        if done.returncode or line is None:
            raise RigError(f"the publisher's bench failed: {done.stderr.strip()[-300:]}")
        return {key: float(value) for key, value in json.loads(line).items()}

    return measure


CURVES = {
    curve.name: curve
    for curve in (
        Curve(
            "accounts", "accounts that call, each in turn", "Each request is of another account.",
            (1, 10, 100, 1_000, 10_000, 100_000), (1, 100, 1_000), open_accounts,
        ),
        Curve(
            "connections", "open client connections, at most 64 of them busy", "The others are idle.",
            (1, 10, 100, 1_000, 5_000, 10_000), (1, 64, 500), open_connections,
            (
                CPU, VALKEY, P50, P99, RATE, MEMORY, Figure("idle_mb", "idle MB", ".1f"),
                Figure("connection_kb", "KiB/connection", ".2f"),
            ),
        ),
        Curve(
            "bodies", "bytes of the answer", "16 connections.",
            (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000), (0, 10_000, 1_000_000), open_bodies,
        ),
        Curve(
            "uploads", "bytes of the request", "16 connections.",
            (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000), (0, 10_000, 1_000_000), open_uploads,
        ),
        Curve(
            "tiers", "tiers of the price table", "A tier ends every 1,000 requests.",
            (1, 2, 5, 10, 20, 50), (1, 10), open_tiers,
        ),
        Curve(
            "backlog", "events that wait in the outbox", "Nobody empties it.",
            (0, 10_000, 100_000, 1_000_000, 5_000_000), (0, 30_000), open_backlog,
            (*USUAL, Figure("valkey_mb", "Valkey MB", ",.0f")),
        ),
        Curve(
            "gateways", "gateways on one Valkey", "64 connections in all; CPU is that of all gateways.",
            (1, 2, 3, 4), (1, 2), open_gateways,
        ),
        Curve(
            "publisher", "events in an entry of the outbox", "How fast they are delivered.",
            (1, 20, 100, 300), (1, 300), open_publisher,
            (
                Figure("events_per_s_core", "events/s/core", ",.0f"), Figure("events_per_s", "events/s", ",.0f"),
                Figure("cpu_us", "CPU µs/event", ".2f"), Figure("valkey_us", "Valkey µs/event", ".2f"),
            ),
        ),
    )
}  # fmt: skip
