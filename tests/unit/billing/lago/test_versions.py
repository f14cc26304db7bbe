"""Which versions of Lago work."""

from __future__ import annotations

import pytest

from sidecar.billing.lago import parsing_invoices
from sidecar.billing.lago.errors import LagoTooOld
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.versions import check_invoice, check_version, is_known
from tests.unit.billing.lago import samples

WORKS = ["v1.19.0", "1.19.0", "v1.19.1", "v1.20", "v1.51.0", "v2.0.0", "v1.19.0-rc1", "2025-01-17", "2026-08-21"]
TOO_OLD = ["v1.18.0", "v1.18.99", "1.2.0", "v0.53.0-beta", "v1.9.0", "v0.19.0", "2024-12-31", "2025-01-16"]
SAYS_NOTHING = ["", "development", "production", "main", "v1", "20250116", "v1.x"]


@pytest.mark.parametrize("version", WORKS)
def test_from_the_oldest_on_they_work(version: str) -> None:
    assert is_known(version)
    check_version(version)


@pytest.mark.parametrize("version", TOO_OLD)
def test_older_ones_are_refused_with_the_oldest_that_works(version: str) -> None:
    assert is_known(version)
    with pytest.raises(LagoTooOld, match=rf"Lago is {version}; the oldest that works is v1\.19\.0"):
        check_version(version)


@pytest.mark.parametrize("version", SAYS_NOTHING)
def test_a_version_that_says_nothing_is_neither(version: str) -> None:
    assert not is_known(version)
    check_version(version)


def test_a_whole_invoice_of_usage_says_which_periods_it_bills() -> None:
    def read(**row: object) -> None:
        check_invoice("GET /invoices/{id}", parsing_invoices.invoice(Fields(row, "GET /invoices/{id}")))

    read(**samples.invoice(is_whole=True, fees=[]))
    read(**samples.invoice(invoice_type="credit"))
    with pytest.raises(LagoTooOld, match=r"GET /invoices/\{id\}: the invoice has no billing_periods; .* v1\.19\.0"):
        read(**samples.invoice())
