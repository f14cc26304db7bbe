"""Settings of what goes to the API."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sidecar.gateway.context import answer_limits
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.settings import UpstreamSettings


@pytest.mark.parametrize("name", ["X-Partner", "X-Partner-*", "x_partner_*", "traceparent", "authorization", "Cookie"])
def test_a_field_can_be_dropped(name: str) -> None:
    assert UpstreamSettings(url="http://api", drop_fields=(name,)).drop_fields == (name,)


@pytest.mark.parametrize(
    "name",
    ["", "*", "x*y", "x y", "x:", "Host", "content-*", "C*", "Content-Length", "transfer-encoding", "max-forwards",
     "x-fapi-*", "X-Request-ID", "x" * 65],
)  # fmt: skip
def test_a_field_that_is_none_or_is_needed_cannot(name: str) -> None:
    with pytest.raises(ValidationError, match="drop_fields"):
        UpstreamSettings(url="http://api", drop_fields=(name,))


def test_an_answers_head_may_be_larger_than_a_requests_and_never_smaller() -> None:
    limits = Limits()
    assert answer_limits(limits).head_bytes_max == 16 * 32_768 + 65_536
    assert answer_limits(limits, 1_000_000).head_bytes_max == 1_000_000
    assert answer_limits(limits, 256).head_bytes_max == limits.head_bytes_max
    assert answer_limits(limits).fields_max > 100_000
