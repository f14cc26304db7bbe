"""Curves without a run: what is chosen, how it is judged and shown."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from loadtests.kit.processes import RigError
from loadtests.scaling import __main__ as command
from loadtests.scaling import report
from loadtests.scaling.curve import BARS, CurveBar, Figure, judge
from loadtests.scaling.curves import CURVES, REQUESTS_A_TIER, table_of


def rounds(**figures: list[float]) -> list[dict[str, float]]:
    return [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]


RATIO = CurveBar(what="ratio", curve="accounts", figure="cpu_us", point=100, bound=1.25, base=1)
LEAST = CurveBar(what="least", curve="publisher", figure="events", point=300, bound=40_000, at_least=True)


def test_a_ratio_is_of_one_round_and_its_median_decides() -> None:
    results = {
        ("accounts", 1): rounds(cpu_us=[10.0, 20.0, 40.0]),
        ("accounts", 100): rounds(cpu_us=[12.0, 40.0, 44.0]),
    }
    [verdict], unjudged = judge(results, [RATIO])
    assert verdict.value == 1.2
    assert verdict.rounds == (1.2, 2.0, 1.1)
    assert (verdict.document()["low"], verdict.document()["high"]) == (1.1, 2.0)
    assert verdict.holds
    assert unjudged == []


@pytest.mark.parametrize(("value", "holds"), [(1.25, True), (1.2501, False)])
def test_a_bar_may_be_touched_and_not_crossed(value: float, holds: bool) -> None:
    results = {("accounts", 1): rounds(cpu_us=[1.0]), ("accounts", 100): rounds(cpu_us=[value])}
    assert [verdict.holds for verdict in judge(results, [RATIO])[0]] == [holds]


@pytest.mark.parametrize(("events", "holds"), [(39_999.0, False), (40_000.0, True)])
def test_some_bars_are_to_be_reached(events: float, holds: bool) -> None:
    assert [v.holds for v in judge({("publisher", 300): rounds(events=[events])}, [LEAST])[0]] == [holds]


def test_what_was_not_measured_is_not_judged() -> None:
    verdicts, unjudged = judge({("accounts", 1): rounds(cpu_us=[1.0])}, [RATIO, LEAST])
    assert (verdicts, unjudged) == ([], [RATIO, LEAST])


def test_every_bar_is_over_points_that_a_whole_run_has() -> None:
    for bar in BARS:
        curve = CURVES[bar.curve]
        assert bar.point in curve.points
        assert bar.base is None or bar.base in curve.points
        assert bar.figure in {figure.key for figure in curve.figures}


def test_points_grow_and_a_smoke_run_is_smaller() -> None:
    for curve in CURVES.values():
        assert list(curve.points) == sorted(set(curve.points))
        assert max(curve.quick) <= max(curve.points)
        assert len(curve.quick) <= len(curve.points)


@pytest.mark.parametrize("tiers", [1, 2, 50])
def test_a_table_has_the_tiers_that_it_is_asked_for_and_traffic_walks_through_them(tiers: int) -> None:
    table = table_of(tiers)["api_calls"]["tiers"]
    assert len(table) == tiers
    assert [tier.get("up_to") for tier in table] == [*(n * REQUESTS_A_TIER for n in range(1, tiers)), None]
    prices = [float(tier["unit"]) for tier in table]
    assert len(set(prices)) == tiers, "tiers of one price could be taken for one"


def test_the_command_line_names_the_curves_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(["acounts"])
    assert ended.value.code == 2
    assert "'acounts'; there are accounts, connections, bodies" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--seconds", "x"], ["--seconds", "-1"]])
def test_rounds_and_seconds_are_at_least_one(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(words)
    assert ended.value.code == 2


def test_a_smoke_run_is_one_round_of_a_second() -> None:
    asked = command.parse(["tiers", "--quick", "--rounds", "9"])
    assert (asked.curves, asked.rounds, asked.seconds) == (["tiers"], 1, 1)


def test_too_few_files_are_said_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(RigError, match=r"10,000 connections need 12,000 open files, the limit is 4,096"):
        command.allow_files(10_000)


def test_a_cell_shows_median_and_spread_and_nothing_where_nothing_was_measured() -> None:
    figure = Figure("a", "A", ".1f")
    assert report.cell(rounds(a=[3.0, 1.0, 2.0]), figure) == "2.0 (1.0–3.0)"
    assert report.cell(rounds(b=[3.0]), figure) == ""


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (1500, "1500"), (100_000, "100k"), (5_000_000, "5M")]
)
def test_numbers_of_an_axis_are_short(number: int, text: str) -> None:
    assert report.short(number) == text


def test_the_document_has_every_round(tmp_path: Path) -> None:
    results: dict[tuple[str, int], list[dict[str, float]]] = {("accounts", 1): rounds(cpu_us=[1.0, 2.0])}
    document: dict[str, Any] = report.document(results, judge(results)[0], 3)
    assert document["results"] == [{"curve": "accounts", "point": 1, "rounds": [{"cpu_us": 1.0}, {"cpu_us": 2.0}]}]
    assert document["bars"] == []
