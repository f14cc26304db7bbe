"""Names of a run, and rows of its table."""

from __future__ import annotations

import pytest

from sidecar.cli.verify_billing.names import BadPrefix, Names, new_prefix
from sidecar.cli.verify_billing.report import details, passes
from sidecar.cli.verify_billing.scenario import Comparison, Result, Row
from sidecar.cli.verify_billing.scenarios import SCENARIOS


@pytest.mark.parametrize("prefix", ["", "verify", "verify-", "tpp-1", "verify-A", "verify-a-b", "verify-" + "a" * 18])
def test_a_prefix_cannot_be_what_a_bank_has_named_nor_the_start_of_another_one(prefix: str) -> None:
    with pytest.raises(BadPrefix):
        Names(prefix)


def test_a_run_knows_its_own_names_and_no_other() -> None:
    names = Names("verify-1a")
    own = [names.of("prepaid"), names.subscription(names.of("prepaid")), names.metric, names.tax]
    others = ["verify-1a", "verify-1ab-prepaid", "verify_1ab_calls", "tpp-verify-1a-x", "", None]
    assert all(names.owns(each) for each in own)
    assert not any(names.owns(each) for each in others)


def test_new_prefixes_are_prefixes_and_differ() -> None:
    assert Names(new_prefix()).prefix != Names(new_prefix()).prefix


def row(result: Result, *comparisons: Comparison, why: str = "") -> Row:
    return Row("top-up", "", result, 1.0, comparisons, why)


SAME, OTHER = Comparison("ledger units", "5", "5"), Comparison("Lago cents", "50", "49")


def test_a_row_that_differs_says_what_was_expected_and_found() -> None:
    assert details(row("differs", SAME, OTHER)) == "Lago cents: expected 50, found 49"


def test_a_row_without_a_difference_says_what_was_compared() -> None:
    assert details(row("ok", SAME, why="seen after 1.0 s")) == "ledger units 5\nseen after 1.0 s"
    assert details(row("skipped", why="needs a licence")) == "needs a licence"


@pytest.mark.parametrize(("result", "passed"), [("ok", True), ("skipped", True), ("differs", False), ("failed", False)])
def test_a_run_passes_if_nothing_differs_and_nothing_failed(result: Result, passed: bool) -> None:
    assert passes([row("ok", SAME), row(result)]) is passed


def test_scenarios_have_names_of_their_own_and_a_sentence() -> None:
    names = [each.name for each in SCENARIOS]
    assert len(set(names)) == len(names)
    assert all(each.shows.endswith(".") for each in SCENARIOS)
