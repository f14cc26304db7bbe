"""The clock of the stand-in, and its settings."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sidecar.sandbox.lago.clock import Clock, ClockError, instant, unix_s, unix_us
from sidecar.sandbox.lago.config import LagoConfig


def test_instants_are_exact_to_the_microsecond() -> None:
    when = instant(1_749_556_800.123457)
    assert when == datetime(2025, 6, 10, 12, 0, 0, 123457, tzinfo=UTC)
    assert (unix_us(when), unix_s(when)) == (1_749_556_800_123_457, 1_749_556_800.123457)


def test_a_clock_moves_forward_only_and_goes_on_running() -> None:
    base = [1000.0]
    clock = Clock(lambda: base[0])
    clock.set(2000.0)
    assert clock.unix_s() == 2000
    base[0] += 5
    assert clock.unix_s() == 2005
    with pytest.raises(ClockError, match=r"stands at 2005\.0 and does not go back to 2004\.0"):
        clock.set(2004.0)
    clock.at_least(instant(1.0))
    assert clock.unix_s() == 2005
    clock.at_least(instant(2010.0))
    assert clock.unix_s() == 2010


@pytest.mark.parametrize(
    "wrong", [{"bill_minute": 60}, {"period_s": 0}, {"invoice_grace_period_days": -1}, {"refresh_wallets_s": 301}]
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LagoConfig(**wrong)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    shown = repr(LagoConfig(api_key="very-secret", hmac_key="more-secret"))
    assert "secret" not in shown
