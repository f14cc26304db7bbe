"""The report: one page that needs nothing else. No I/O; what it shows is an ``Outcome``, which has no secrets."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from loadtests.scenarios import chart
from loadtests.scenarios.checks import Check, Verdict
from loadtests.scenarios.outcome import Outcome

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5f6770; --line: #d9dde2; --paper: #fff; --band: #f4f6f8;
  --good: #18794e; --bad: #c62a2f; --warn: #9a6700; --blue: #0b68cb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa4ae; --line: #343b43; --paper: #14171a;
  --band: #1c2126; --good: #4cc38a; --bad: #ff6369; --warn: #f0b429; --blue: #52a9ff; } }
body { margin: 2rem auto; max-width: 56rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
h1 .verdict { margin-left: .5rem; }
p { margin: .25rem 0; } .dim, dt { color: var(--dim); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; } dd { margin: 0; }
table { width: 100%; border-collapse: collapse; } td, th { padding: .35rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { color: var(--dim); font-weight: 500; }
.narrow { width: auto; } .narrow td + td, .narrow th + th { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 600; white-space: nowrap; }
.holds { color: var(--good); } .failed { color: var(--bad); } .unchecked { color: var(--warn); }
tr.failed td { background: color-mix(in srgb, var(--bad) 10%, transparent); color: var(--ink); }
tr.failed td.verdict { color: var(--bad); }
.side { display: flex; gap: 3rem; flex-wrap: wrap; align-items: flex-start; }
.chart { width: 100%; height: auto; background: var(--band); border-radius: 6px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); } svg text.mark { fill: var(--warn); }
.grid { stroke: var(--line); } rect.mark { fill: var(--warn); opacity: .18; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.passed { stroke: var(--good); } .refused { stroke: var(--blue); stroke-dasharray: 5 3; }
.lost { stroke: var(--bad); stroke-dasharray: 2 3; }
.key { margin-right: 1.2rem; } .key svg { width: 26px; height: 10px; }
"""
CLASSES = {Verdict.HOLDS: "holds", Verdict.FAILED: "failed", Verdict.UNCHECKED: "unchecked"}
OVERALL = {0: ("holds", "all checks hold"), 1: ("failed", "FAILED"), 2: ("unchecked", "nothing was checked")}


def page(outcome: Outcome) -> str:
    """The whole HTML document."""
    kind, words = OVERALL[outcome.exit_status]
    unchecked = outcome.count(Verdict.UNCHECKED)
    more = f", {unchecked} not checked" if unchecked and outcome.exit_status == 0 else ""
    title = f"Load test: {outcome.scenario}"
    # What ended after the last whole second would look like a fall.
    seconds = [second for second in outcome.answers.seconds if second.at < max(1, int(outcome.seconds))]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>'
        f'<h1>{escape(title)} <span class="verdict {kind}">{words}{more}</span></h1>\n'
        f"<p>{escape(outcome.about)}</p>\n{_facts(outcome)}\n"
        f"<h2>Checks</h2>\n{_checks(outcome.checks)}\n{_texts(outcome.answers.texts)}"
        f'<h2>Requests</h2>\n<div class="side">{_statuses(outcome)}{_latency(outcome)}{_notes(outcome)}</div>\n'
        f"<h2>{chart.TITLE}</h2>\n{chart.draw(seconds, outcome.marks)}"
        f"<p>{chart.legend(seconds, outcome.marks)}</p></body></html>\n"
    )


def _facts(outcome: Outcome) -> str:
    facts = [
        ("when", outcome.when),
        ("load", f"{outcome.users:,} clients, {outcome.seconds:.1f} s{_asked(outcome)}"),
        ("gateways", ", ".join(outcome.urls)),
        ("release", outcome.release or "not known: needs --admin"),
        ("machine" if outcome.is_local else "machine of the clients", f"{outcome.machine}, {outcome.python}"),
        ("target", "; ".join(outcome.notes)),
        ("must hold", outcome.asserts),
    ]
    facts += [(mark.label, f"{mark.began_s:.1f} to {mark.ended_s:.1f} s") for mark in outcome.marks]
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in facts)}</dl>"


def _asked(outcome: Outcome) -> str:
    shorter = outcome.seconds < outcome.seconds_asked - 0.5
    return f" (of {outcome.seconds_asked:g} s: the load ended by itself)" if shorter else ""


def _checks(checks: Iterable[Check]) -> str:
    rows = "".join(
        f'<tr class="{CLASSES[check.verdict] if check.verdict is Verdict.FAILED else ""}"><td>{escape(check.name)}</td>'
        f"<td>{escape(check.expected)}</td><td>{escape(check.found)}</td>"
        f'<td class="verdict {CLASSES[check.verdict]}">{check.verdict.value}</td></tr>'
        for check in checks
    )
    return f"<table><tr><th>check</th><th>expected</th><th>found</th><th></th></tr>{rows}</table>"


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="narrow"><tr><th>{heads[0]}</th><th>{heads[1]}</th></tr>{cells}</table>' if cells else ""


def _statuses(outcome: Outcome) -> str:
    return _table(
        ("status", "requests"), [(status, f"{count:,}") for status, count in outcome.answers.by_status.items()]
    )


def _latency(outcome: Outcome) -> str:
    latency = outcome.answers.latency
    values = (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99), ("max", latency.max))
    return _table(("latency of 2xx", "ms"), [(name, f"{value:,.1f}") for name, value in values])


def _notes(outcome: Outcome) -> str:
    return _table(
        ("counted by the clients", ""), [(name, f"{count:,}") for name, count in sorted(outcome.answers.notes.items())]
    )


def _texts(texts: Iterable[str]) -> str:
    return "".join(f'<p class="failed">{escape(text)}</p>' for text in texts)
