"""Settings of billing that contradict each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sidecar.billing.settings import LagoSettings, ReconcileSettings


@pytest.mark.parametrize(
    "given",
    [
        {"funds_age_s_max": 21_600},
        {"funds_age_s_max": 43_199},
        {"funds_age_s_max": 21_600, "full_interval_s": 21_600},
        {"funds_age_s_max": 19, "full_interval_s": 10},
    ],
)
def test_funds_may_get_twice_as_old_as_the_interval_of_full_readings(given: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="funds_age_s_max must be at least twice full_interval_s"):
        LagoSettings.model_validate({"reconcile": given})


@pytest.mark.parametrize(
    "given",
    [{}, {"funds_age_s_max": 43_200}, {"funds_age_s_max": 20, "full_interval_s": 10}, {"full_interval_s": 604_800}],
)
def test_ages_that_can_be_kept_are_accepted(given: dict[str, int]) -> None:
    assert ReconcileSettings.model_validate(given).funds_age_s_max == given.get("funds_age_s_max")


ENTRY = {"metric": "payments_sepa", "code": "payments", "properties": {"scheme": "sepa"}}


def test_metrics_of_one_billable_metric_are_accepted() -> None:
    given = LagoSettings.model_validate({"billable_metrics": [ENTRY, {"metric": "transfers", "code": "Old Transfers"}]})
    assert [each.code for each in given.billable_metrics] == ["payments", "Old Transfers"]
    assert given.billable_metrics[1].properties == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metric": "Payments"}, "billable_metrics.0.metric"),
        ({"metric": "a" * 65}, "billable_metrics.0.metric"),
        ({"code": ""}, "billable_metrics.0.code"),
        ({"properties": {"version": 2}}, "billable_metrics.0.properties.version"),
        ({"properties": {"sepa": True}}, "billable_metrics.0.properties.sepa"),
        ({"properties": {"scheme": ["sepa"]}}, "billable_metrics.0.properties.scheme"),
        ({"properties": {"scheme": ""}}, "billable_metrics.0.properties.scheme"),
        ({"properties": {"": "sepa"}}, "billable_metrics.0.properties"),
        ({"properties": {f"p{n}": "x" for n in range(11)}}, "billable_metrics.0.properties"),
        ({"properties": {"target_wallet_code": "main"}}, "Lago would take the money from one wallet"),
        ({"filters": {}}, "billable_metrics.0.filters"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_its_place(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LagoSettings.model_validate({"billable_metrics": [ENTRY | change]})


def test_a_metric_has_one_entry() -> None:
    with pytest.raises(ValidationError, match="two entries for the metric payments_sepa"):
        LagoSettings.model_validate({"billable_metrics": [ENTRY, ENTRY | {"code": "other"}]})


def test_so_many_entries_are_too_many() -> None:
    entries = [ENTRY | {"metric": f"m{number}"} for number in range(1_001)]
    with pytest.raises(ValidationError, match="billable_metrics"):
        LagoSettings.model_validate({"billable_metrics": entries})
