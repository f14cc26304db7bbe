"""Which of the two cores these tests run on: where the compiled one is asked for, nothing must pass on the other."""

from __future__ import annotations

import os

import sidecar.ledger.link
import sidecar.proxy.exchange
import sidecar.proxy.framing
from sidecar.proxy import core


def test_the_core_under_test_is_the_one_that_was_asked_for() -> None:
    modules = (sidecar.proxy.exchange, sidecar.proxy.framing, sidecar.ledger.link)
    compiled = [str(module.__file__).endswith((".so", ".pyd")) for module in modules]
    if os.environ.get("QUOTA_SIDECAR_EXPECT_COMPILED"):
        assert all(compiled)
        assert core.scanner_factory is not None
    else:
        assert not any(compiled), "a compiled module hides its source"
