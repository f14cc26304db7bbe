"""The page and the JSON show what was found, and nothing that was secret."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from loadtests.scenarios import chart
from loadtests.scenarios.checks import Check, equals, unchecked
from loadtests.scenarios.plan import Second
from loadtests.scenarios.report import page
from loadtests.scenarios.scenario import Mark
from tests.unit.loadtests.scenarios.kit import outcome

HOLDS, FAILED = equals("calls", 10, 10), equals("balance", "0", "0.10")
UNCHECKED = unchecked("events", "10", "--valkey")
SECONDS = (Second(0, 100, 0, 0), Second(1, 50, 30, 2), Second(2, 90, 0, 0))


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ((HOLDS,), "all checks hold<"),
        ((HOLDS, UNCHECKED), "all checks hold, 1 not checked<"),
        ((HOLDS, FAILED, UNCHECKED), ">FAILED<"),
        ((UNCHECKED,), "nothing was checked<"),
    ],
)
def test_the_headline_is_the_exit_status(checks: tuple[Check, ...], words: str) -> None:
    assert words in page(outcome(*checks)).partition("<p>")[0]


def test_every_check_has_a_row_with_what_was_expected_and_found() -> None:
    text = page(outcome(HOLDS, FAILED, UNCHECKED))
    assert '<td>balance</td><td>0</td><td>0.10</td><td class="verdict failed">FAILED</td>' in text
    assert '<td>events</td><td>10</td><td>needs --valkey</td><td class="verdict unchecked">not checked</td>' in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(outcome(HOLDS, seconds=SECONDS))
    assert not re.search(r"(src|href)=|@import|url\(|<script", text)


def test_what_others_wrote_is_text_and_not_markup() -> None:
    text = page(replace(outcome(equals("<b>", "<i>", "<u>")), urls=("http://<a>",), notes=("<s>",)))
    assert not re.search(r"<(b|i|u|a|s)>", text)


def test_the_page_names_release_machine_and_how_long_the_run_took() -> None:
    usual = outcome(HOLDS)
    text = page(usual)
    assert "<dt>release</dt><dd>1.2.3 (compiled)</dd>" in text
    assert "<dt>machine</dt><dd>Some CPU (x86_64), 2 cores, Linux 6.1, CPython 3.11.2</dd>" in text
    assert "<dd>20 clients, 3.0 s</dd>" in text
    text = page(replace(usual, release="", is_local=False, seconds=1.26, seconds_asked=20.0))
    assert "<dt>release</dt><dd>not known: needs --admin</dd>" in text
    assert "<dt>machine of the clients</dt>" in text
    assert "<dd>20 clients, 1.3 s (of 20 s: the load ended by itself)</dd>" in text


def test_the_chart_has_a_title_and_a_unit_on_each_axis() -> None:
    text = page(outcome(HOLDS, seconds=SECONDS))
    assert f"<h2>{chart.TITLE}</h2>" in text
    assert ">requests per second</text>" in text
    assert ">time since the start, s</text>" in text


def test_the_legend_explains_what_is_drawn_and_nothing_else() -> None:
    assert re.findall(r"</svg> ([^<]+)<", chart.legend(SECONDS, [Mark("Valkey SIGKILL", 1.0, 2.0)])) == [
        "2xx", "other statuses", "without an answer", "disturbance",
    ]  # fmt: skip
    assert re.findall(r"</svg> ([^<]+)<", chart.legend(SECONDS[:1], [])) == ["2xx"]
    assert chart.legend((), [Mark("Valkey SIGKILL", 1.0, 2.0)]) == ""


def test_disturbances_are_drawn_where_they_were() -> None:
    drawn = chart.draw(SECONDS, [Mark("Valkey SIGKILL", 1.0, 2.0)])
    third = (chart.WIDTH - chart.LEFT - chart.RIGHT) / 3
    assert f'<rect class="mark" x="{chart.LEFT + third:.1f}"' in drawn
    assert f'width="{third:.1f}"' in drawn
    assert ">Valkey SIGKILL</text>" in drawn


def test_only_lines_with_something_in_them_are_drawn() -> None:
    assert chart.draw(SECONDS, []).count("<polyline") == 3
    assert chart.draw(SECONDS[:1], []).count("<polyline") == 1
    assert chart.draw((), []) == ""


@pytest.mark.parametrize(("most", "scale"), [(0, 4), (4, 4), (5, 8), (1_300, 2_000), (2_001, 4_000)])
def test_the_scale_ends_above_the_highest_value_at_a_round_number(most: int, scale: int) -> None:
    assert chart.nice(most) == scale


def test_the_json_has_verdicts_figures_and_the_exit_status() -> None:
    document = json.loads(json.dumps(outcome(HOLDS, FAILED, seconds=SECONDS).document()))
    assert document["exit_status"] == 1
    assert [check["verdict"] for check in document["checks"]] == ["holds", "FAILED"]
    assert (document["release"], document["seconds"], document["seconds_asked"]) == ("1.2.3 (compiled)", 3.04, 3.0)
    assert document["answers"]["by_status"] == {"200": 10, "402": 3}


def test_the_last_line_says_it_all() -> None:
    assert outcome(HOLDS, FAILED, UNCHECKED).summary() == (
        "herd: FAILED (1 hold, 1 FAILED, 1 not checked); 10 × 200, 3 × 402"
    )
