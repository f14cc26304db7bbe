"""The pictures in docs/ show the results in loadtests/results, with a title, units and a legend."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from loadtests.compare.report import CHART_CONNECTIONS
from loadtests.kit.charts import SPREAD
from loadtests.kit.processes import RigError
from loadtests.kit.results import read_json
from loadtests.scaling.curves import CURVES
from loadtests.scaling.report import SERIES, short

ROOT = Path(__file__).parents[3]


def texts(name: str) -> list[str]:
    """All texts of a picture, which stay texts in it."""
    picture = (ROOT / "docs" / f"{name}.svg").read_text()
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]


def result(name: str) -> dict[str, Any]:
    return read_json(ROOT / "loadtests" / "results" / f"{name}.json")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("compare", "CPU time per request at 64 connections"),
        ("scaling", "CPU time and latency as one quantity grows"),
    ],
)
def test_a_picture_has_a_title_and_says_when_and_on_what_it_was_measured(name: str, title: str) -> None:
    shown, measured = texts(name), result(name)
    assert title in shown
    [below] = [text for text in shown if text.startswith("Medians of ")]
    rounds = max(len(row["rounds"]) for row in measured["results"])
    assert f"{rounds} rounds of {measured['seconds']} s" in below
    assert below.endswith(f"{measured['date']}, {measured['machine']}, Python {measured['python']}")


def test_the_comparison_shows_every_contender_with_its_medians() -> None:
    shown = texts("compare")
    rows = [row for row in result("compare")["results"] if row["connections"] == CHART_CONNECTIONS]
    contenders = [row for row in rows if row["contender"] in shown]
    assert {row["contender"] for row in rows} - {row["contender"] for row in contenders} == {"direct, no proxy"}
    figures = [median(each["cpu_us"] for each in row["rounds"]) for row in contenders]
    valkey = [median(each["valkey_us"] for each in row["rounds"]) for row in contenders]
    expected = [f"{figure:.0f}" for figure in (*figures, *(each for each in valkey if each > 1))]
    ticks = [text for text in shown if text.isdigit() and int(text) % 100 == 0]
    assert sorted(text for text in shown if text.isdigit() and text not in ticks) == sorted(expected)


def test_the_comparison_has_a_unit_and_a_legend() -> None:
    assert {
        "CPU time per request, µs",
        "CPU of the gateway",
        "CPU of the other contenders",
        "CPU of Valkey",
        SPREAD,
    } <= set(texts("compare"))


def test_the_curves_have_a_panel_each_with_units_at_both_sides_and_one_legend() -> None:
    shown = texts("scaling")
    for curve in CURVES.values():
        assert any(text in (curve.name, f"{curve.name} (logarithmic axes)") for text in shown)
        assert curve.axis in shown
    assert shown.count("CPU time, µs per request") == len(CURVES) - 1
    assert shown.count("CPU time, µs per event") == 1
    assert shown.count("p99 latency, ms") == len(CURVES) - 1
    for title in (*(title for title, *_ in SERIES), SPREAD):
        assert shown.count(title) == 1


def test_the_curves_have_every_point_that_was_measured() -> None:
    shown = texts("scaling")
    for row in result("scaling")["results"]:
        assert short(row["point"]) in shown


def test_what_is_no_result_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(RigError, match=r"result\.json: No such file"):
        read_json(path)
    for text in ("{", "[]", json.dumps({"results": []})):
        path.write_text(text)
        with pytest.raises(RigError, match=r"result\.json"):
            read_json(path)
