"""The ratios that the gateway has to hold (in one run, medians)."""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.compare import contenders as who
from loadtests.compare.measuring import Measurement
from loadtests.kit.bars import Bar, Verdict

Results = dict[tuple[int, str], list[Measurement]]
"""By connections and contender, one measurement a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioBar(Bar):
    """The gateway's ``figure`` at so many connections divided by that of ``peer`` in the same round."""

    figure: str
    peer: str
    connections: int


def _bar(what: str, figure: str, peer: str, connections: int, bound: float, *, at_least: bool = False) -> RatioBar:
    what = f"{what}, {connections} connection{'s' if connections > 1 else ''}"
    return RatioBar(what=what, figure=figure, peer=peer, connections=connections, bound=bound, at_least=at_least)


BARS = (
    _bar("CPU per request ÷ nginx + Lua, one decrement", "cpu_us", who.NGINX_LUA, 64, 0.90),
    _bar("CPU per request ÷ Envoy, plain proxy", "cpu_us", who.ENVOY, 64, 0.75),
    _bar("CPU per request ÷ nginx, plain proxy", "cpu_us", who.NGINX, 64, 2.2),
    _bar("requests/s ÷ aiohttp + redis-py", "requests_per_s", who.AIOHTTP, 64, 5, at_least=True),
    _bar("p50 ÷ nginx + Lua, one decrement", "p50_ms", who.NGINX_LUA, 1, 1.2),
    _bar("p99 ÷ nginx + Lua, one decrement", "p99_ms", who.NGINX_LUA, 64, 1.0),
    _bar("Valkey CPU per request ÷ nginx + Lua, decrement + XADD", "valkey_us", who.NGINX_LUA_EVENT, 64, 0.75),
)


def judge(results: Results) -> list[Verdict[RatioBar]]:
    """A verdict for each bar whose measurements are there."""
    verdicts = []
    for bar in BARS:
        own = results.get((bar.connections, who.GATEWAY), [])
        peers = results.get((bar.connections, bar.peer), [])
        ratios = [
            getattr(mine, bar.figure) / getattr(theirs, bar.figure) for mine, theirs in zip(own, peers, strict=False)
        ]
        if ratios:
            verdicts.append(Verdict(bar, tuple(ratios)))
    return verdicts
