"""What a ledger says of itself at the end of a test: every rule that ``sidecar ledger verify`` recomputes."""

from __future__ import annotations

from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.charged_units import ChargedUnits
from sidecar.ledger.verification.verify import verify_ledger
from sidecar.ledger.verification.verify_report import Check
from sidecar.metering.audit.charged_events import read_charged
from sidecar.valkey.topology import Client


async def assert_verified(client: Client, keys: Keys, *, moved_clock: bool = False) -> None:
    """Raises ``AssertionError``: something differs. ``moved_clock``: the test's clock is not the server's, whose stream
    ids tell of which hours all events are kept."""

    async def charged(now_ms: int) -> ChargedUnits | None:
        return await read_charged(client, keys, now_ms)

    report = await verify_ledger(client, keys, read_charged=None if moved_clock else charged)
    # The ledger's clock may be ahead of the server's, where a test has moved it.
    wrong = [each for each in report.differences if not (moved_clock and each.check is Check.PARTITIONS)]
    assert wrong == [], wrong
