"""The version of a Lago, and what one that is too old is taken for."""

from __future__ import annotations

import pytest

from sidecar.billing.lago.errors import LagoError, LagoTooOld
from tests.integration.billing.lago_client.kit import Reply, Request, talking
from tests.unit.billing.lago import samples


async def test_the_version_is_asked_for_beside_the_api() -> None:
    answer = {
        "version": "v1.51.0",
        "github_url": "https://github.com/getlago/lago-api/tree/v1.51.0",
        "message": "Success",
    }
    async with talking([(200, answer)]) as (client, lago):
        assert await client.version() == "v1.51.0"
    assert lago.lines == ["GET /health"]
    assert client.metrics.requests == {"GET /health": 1}


@pytest.mark.parametrize("reply", [(200, {"status": "ok"}), (200, b"OK"), (404, b""), (502, b"<html>")])
async def test_what_is_not_lago_s_health_is_an_error(reply: Reply) -> None:
    async with talking([reply]) as (client, _):
        with pytest.raises(LagoError):
            await client.version()


async def test_an_invoice_without_billing_periods_is_of_a_lago_that_is_too_old() -> None:
    whole = samples.invoice(is_whole=True)
    del whole["billing_periods"]

    def script(request: Request) -> Reply:
        if request.path == "/invoices":
            return 200, samples.page("invoices", samples.invoice())
        return 200, {"invoice": whole}

    async with talking(script) as (client, lago):
        with pytest.raises(LagoTooOld, match="no billing_periods"):
            await client.invoice("i2")
        with pytest.raises(LagoTooOld, match="no billing_periods"):
            await client.newest_invoice()
    assert lago.requests[1].query == [("invoice_type", "subscription"), ("page", "1"), ("per_page", "1")]


async def test_without_invoices_there_is_no_newest_one() -> None:
    async with talking([(200, samples.page("invoices"))]) as (client, _):
        assert await client.newest_invoice() is None
