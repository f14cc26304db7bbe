"""The ledger on the shipped scripts, on the model, and on the shipped scripts with Valkey's own clock."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.ledger import Ledger
from tests.support.ledger_driver import RealLedger


@pytest.fixture(params=["scripts", "model"])
def ledger(request: pytest.FixtureRequest) -> LedgerFixture:
    """Every behaviour is shown by both. The clock stands until the test moves it."""
    backend: Any = Ledger() if request.param == "model" else RealLedger(request.getfixturevalue("valkey"))
    return LedgerFixture(backend)


@pytest.fixture
def real_ledger(valkey: redis.Redis) -> LedgerFixture:
    """For what only the scripts have: expiry, raw data, errors of the server."""
    return LedgerFixture(RealLedger(valkey))
