"""A desk on the shipped scripts, on the model, and on the shipped scripts with Valkey's own clock."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.integration.ledger.desk import Desk
from tests.reference.ledger import Ledger
from tests.support.ledger_driver import RealLedger


@pytest.fixture(params=["scripts", "model"])
def desk(request: pytest.FixtureRequest) -> Desk:
    """Every behaviour is shown by both. The clock stands until the test moves it."""
    ledger: Any = Ledger() if request.param == "model" else RealLedger(request.getfixturevalue("valkey"))
    return Desk(ledger)


@pytest.fixture
def real_desk(valkey: redis.Redis) -> Desk:
    """For what only the scripts have: expiry, raw data, errors of the server."""
    return Desk(RealLedger(valkey))
