"""The controls: faults, the clock, counts; and what is refused before it gets to the API."""

from __future__ import annotations

import aiohttp
import pytest

from sidecar.sandbox.lago.lago_faults import LagoFault
from tests.integration.sandbox.lago_kit import config, metered, running, unix


@pytest.mark.parametrize("key", ["", "wrong-key", "right-key-and-more"])
async def test_without_the_key_there_is_nothing_to_see(key: str) -> None:
    async with running() as client:
        client.key = key
        assert await client.call("GET", "/customers") == (401, {"status": 401, "error": "Unauthorized"})
        assert (await client.call("GET", "/sandbox/clock"))[0] == 200


async def test_what_there_is_not_is_not_found() -> None:
    async with running() as client:
        for method, path in (("GET", "/add_ons"), ("DELETE", "/events"), ("GET", "/customers/tpp/nothing")):
            assert await client.refused(method, path, checked=False) == (404, "resource_not_found")
        client.key = ""
        assert await client.refused("GET", "/add_ons", checked=False) == (404, "resource_not_found")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"customer": 5}', b'{"customer": {}}', b""])
async def test_a_body_that_is_none_is_a_bad_request(body: bytes) -> None:
    async with running() as client:
        headers = {"Authorization": f"Bearer {client.key}", "Content-Type": "application/json"}
        async with client.session.post(f"{client.url}/api/v1/customers", data=body, headers=headers) as answer:
            found = await answer.json()
        assert (answer.status, found["status"]) == (400, 400)
        assert found["error"].startswith("BadRequest: ")


async def test_scripted_faults_strike_once_and_leave_nothing_behind() -> None:
    async with running() as client:
        script = [{"path": "/api/v1/customers", "status": 503, "retry_after": "2"}]
        await client.post("/sandbox/faults", {"script": script})
        headers = {"Authorization": f"Bearer {client.key}"}
        body = {"customer": {"external_id": "tpp"}}
        async with client.session.post(f"{client.url}/api/v1/customers", json=body, headers=headers) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert (await client.get("/customers"))["customers"] == []
        await client.customer()
        assert (await client.get("/sandbox/faults"))["struck"] == 1


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "part"),
    [
        ({"status": 502, "body": "html"}, 502, "text/html", b"<html>"),
        ({"body": "html"}, 200, "text/html", b"<html>"),
        ({"body": "garbage"}, 200, "application/json", b'{"wallets"'),
    ],
)
async def test_answers_may_be_html_or_garbage(
    fault: dict[str, object], status: int, content_type: str, part: bytes
) -> None:
    async with running() as client:
        await client.post("/sandbox/faults", {"chances": [{"probability": 1, "fault": fault}]})
        async with client.session.get(f"{client.url}/api/v1/wallets") as answer:
            assert (answer.status, answer.content_type) == (status, content_type)
            assert part in await answer.read()
        await client.delete("/sandbox/faults")
        assert (await client.call("GET", "/customers"))[0] == 200


@pytest.mark.parametrize(("drop", "made"), [("before", 0), ("after", 1)])
async def test_a_connection_may_be_cut_before_or_after_the_work(drop: str, made: int) -> None:
    async with running() as client:
        client.lago.faults.script(LagoFault(method="POST", drop=drop))
        with pytest.raises(aiohttp.ClientError):
            await client.customer()
        assert len(client.lago.store.customers) == made


async def test_an_odd_fault_is_refused_by_name() -> None:
    async with running() as client:
        status, found = await client.call("POST", "/sandbox/faults", {"script": [{"status": 99}]})
        assert (status, "status: 99 is not from 200 to 599" in found["error"]) == (400, True)


async def test_the_clock_moves_forward_and_runs_what_falls_due() -> None:
    async with metered() as client:
        await client.subscribe()
        assert await client.get("/sandbox/clock") == {"now": unix("2025-06-10 12:00")}
        target = unix("2025-07-01 00:10")
        assert await client.post("/sandbox/clock", {"now": target}) == {"now": target}
        assert len(await client.invoices()) == 1
        for odd in (target - 1, "later", None, True, target + 900 * 86_400):
            assert (await client.call("POST", "/sandbox/clock", {"now": odd}))[0] == 400
        assert await client.get("/sandbox/clock") == {"now": target}


async def test_requests_are_counted_by_endpoint() -> None:
    async with running() as client:
        await client.customer()
        await client.get("/customers/tpp")
        await client.get("/customers/tpp")
        counts = (await client.get("/sandbox/stats"))["requests"]
        assert counts == {"GET /api/v1/customers/{external_id}": 2, "POST /api/v1/customers": 1}


async def test_secrets_are_in_no_answer_and_no_repr() -> None:
    async with running(config()) as client:
        await client.customer()
        shown = repr(client.lago) + repr(client.lago.config) + str(await client.get("/sandbox/stats"))
        assert "right-key" not in shown
        assert "right-hmac-key" not in shown
