"""Which of the two cores these tests run on: where the compiled one is asked for, nothing must pass on the other."""

from __future__ import annotations

import os

import sidecar.gateway.exchange.exchange
import sidecar.gateway.http1.framing
import sidecar.ledger.client.link
from sidecar.gateway.http1 import scanner


def test_the_core_under_test_is_the_one_that_was_asked_for() -> None:
    modules = (sidecar.gateway.exchange.exchange, sidecar.gateway.http1.framing, sidecar.ledger.client.link)
    compiled = [str(module.__file__).endswith((".so", ".pyd")) for module in modules]
    if os.environ.get("QUOTA_SIDECAR_EXPECT_COMPILED"):
        assert all(compiled)
        assert scanner.scanner_factory is not None
    else:
        assert not any(compiled), "a compiled module hides its source"
