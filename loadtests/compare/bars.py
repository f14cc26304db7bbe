"""The ratios that the gateway has to hold (in one run, medians)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from loadtests.compare import contenders as who
from loadtests.compare.measuring import Measurement

Results = dict[tuple[int, str], list[Measurement]]
"""By connections and contender, one measurement a round."""


@dataclass(frozen=True, slots=True)
class Bar:
    what: str
    figure: str
    peer: str
    connections: int
    bound: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The median of the rounds' ratios, with the lowest and the highest; each compares measurements of one round."""

    bar: Bar
    ratio: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.ratio >= self.bar.bound if self.bar.at_least else self.ratio <= self.bar.bound


BARS = (
    Bar("CPU per request ÷ nginx + Lua, one decrement", "cpu_us", who.NGINX_LUA, 64, 0.90),
    Bar("CPU per request ÷ Envoy, plain proxy", "cpu_us", who.ENVOY, 64, 0.75),
    Bar("CPU per request ÷ nginx, plain proxy", "cpu_us", who.NGINX, 64, 2.2),
    Bar("requests/s ÷ aiohttp + redis-py", "requests_per_s", who.AIOHTTP, 64, 5, at_least=True),
    Bar("p50 ÷ nginx + Lua, one decrement", "p50_ms", who.NGINX_LUA, 1, 1.2),
    Bar("p99 ÷ nginx + Lua, one decrement", "p99_ms", who.NGINX_LUA, 64, 1.0),
    Bar("Valkey CPU per request ÷ nginx + Lua, decrement + XADD", "valkey_us", who.NGINX_LUA_EVENT, 64, 0.75),
)


def judge(results: Results) -> list[Verdict]:
    """A verdict for each bar whose measurements are there."""
    verdicts = []
    for bar in BARS:
        own = results.get((bar.connections, who.GATEWAY), [])
        peers = results.get((bar.connections, bar.peer), [])
        ratios = [
            getattr(mine, bar.figure) / getattr(theirs, bar.figure) for mine, theirs in zip(own, peers, strict=False)
        ]
        if ratios:
            verdicts.append(Verdict(bar, median(ratios), min(ratios), max(ratios)))
    return verdicts
