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
