from __future__ import annotations

import asyncio

import pytest

from sidecar.sandbox.openmeter.openmeter_events import BATCH, parse_events
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter

AISP, PISP = b"/open-banking/v3.1/aisp", b"/open-banking/v3.1/pisp"

BANK = [
    (b"GET " + AISP + b"/accounts", b"Host: b\xc3\xbcro\r\n"),
    (b"GET " + AISP + b"/accounts", b"Host: \xff\r\n"),
    (b"GET " + AISP + b"/accounts", b"x-fapi-interaction-id: \xff\xfe\r\n"),
    (b"GET " + AISP + b"/accounts", b"x-sandbox-status: \xff\r\n"),
    (b"GET " + AISP + b"/accounts", b"x-sandbox-delay-ms: \xc2\xb2\r\n"),
    (b"GET " + AISP + b"/accounts/%FF%00", b""),
    (b"GET " + AISP + b"/accounts/acc-001/transactions?page=%C2%B2", b""),
    (b"GET " + AISP + b"/transactions?page=" + b"9" * 5000, b""),
    (b"GET " + AISP + b"/transactions?fromBookingDateTime=0000-01-01T00:00:00", b""),
    (b"GET " + AISP + b"/transactions?fromBookingDateTime=9999-12-31T23:59:59Z", b""),
    (b"GET " + AISP + b"/transactions?a=\xff", b""),
    (b"GET /open-banking/echo/\xff?\xfe", b"X: \xff\r\n"),
    (b"GET /open-banking/blob?bytes=%D9%A3", b""),
    (b"GET /open-banking/%2e%2e/etc", b""),
    (b"POST " + PISP + b"/domestic-payments", b"x-idempotency-key: \xff\r\nContent-Type: application/json\r\n"),
    (b"POST " + PISP + b"/domestic-payments", b"x-idempotency-key: k\r\nContent-Type: \xff\r\n"),
]

METER = [
    (b"GET /api/v1/meters/%FF/query", b""),
    (b"GET /api/v1/meters/api_calls/query?windowTimeZone=%00", b""),
    (b"GET /api/v1/meters/api_calls/query?windowTimeZone=Europe/", b""),
    (b"GET /api/v1/meters/api_calls/query?windowTimeZone=/etc/passwd", b""),
    (b"GET /api/v1/meters/api_calls/query?windowTimeZone=" + b"a" * 4000, b""),
    (b"GET /api/v1/meters/api_calls/query?from=0001-01-01T00:00:00%2B23:59&to=9999-12-31T23:59:59-23:59", b""),
    (b"GET /api/v1/meters/api_calls/query?windowSize=MONTH&windowTimeZone=Pacific/Kiritimati", b""),
    (b"GET /api/v1/meters/api_calls/query?windowSize=DAY&windowTimeZone=Pacific/Niue", b""),
    (b"GET /api/v1/meters/api_calls/query?groupBy=%FF&subject=%FF", b""),
    (b"GET /api/v1/meters/api_calls/query?filterGroupBy[%FF]=a", b""),
    (b"GET /api/v1/meters/api_calls/query?advancedMeterGroupByFilters=" + b"[" * 3000, b""),
    (b"GET /api/v1/events?limit=%D9%A3", b""),
    (b"GET /api/v1/events?from=9999-12-31T23:59:59Z&ingestedAtTo=0001-01-01T00:00:00%2B23:59", b""),
    (b"POST /api/v1/events", b"Content-Type: \xff\r\n"),
    (b"POST /api/v1/events", b"Authorization: Bearer \xff\r\n"),
    (b"POST /api/v1/meters", b"Content-Type: application/json; charset=\xff\r\n"),
    (b"POST /sandbox/faults", b"Content-Type: \xff\r\n"),
]


async def status_of(url: str, line: bytes, fields: bytes) -> int:
    """The status of a request written byte by byte as given; its body is ``null``."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    named = b"" if fields.startswith(b"Host:") else b"Host: sandbox.test\r\n"
    writer.write(line + b" HTTP/1.1\r\n" + named + fields + b"Connection: close\r\nContent-Length: 4\r\n\r\nnull")
    answer = await asyncio.wait_for(reader.read(), timeout=10)
    writer.close()
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(("line", "fields"), BANK)
async def test_nothing_that_a_client_sends_breaks_the_sample_api(bank_url: str, line: bytes, fields: bytes) -> None:
    assert await status_of(bank_url, line, fields) in {200, 400, 404, 415}


@pytest.mark.parametrize(("line", "fields"), METER)
async def test_nothing_that_a_client_sends_breaks_the_meter(
    meter: OpenMeter, meter_url: str, line: bytes, fields: bytes
) -> None:
    times = ("1970-01-01T00:00:01Z", "2106-02-07T06:28:15Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59")
    for time in times:
        event = b'{"specversion":"1.0","id":"%s","source":"s","type":"api.call","subject":"t","time":"%s"}'
        meter.keep(parse_events(BATCH, b"[" + event % (time.encode(), time.encode()) + b"]", "v1"))
    assert await status_of(meter_url, line, fields) in {200, 400, 404}
