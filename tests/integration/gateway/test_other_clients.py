"""Clients that others wrote: what they make of the gateway is what it is."""

from __future__ import annotations

import asyncio
import http.client
import shutil
from typing import Any

import aiohttp
import h11
import pytest

from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.rig import Rig, account, chunked

KEY = {"X-API-Key": "this-is-the-key-of-tpp"}


async def sized(talk: Conversation) -> None:
    """Answers ``/n/m`` with status n and m bytes, in chunks for ``/n/m/chunked``; else echoes."""
    while True:
        request = await talk.request()
        if request.target.count(b"/") < 2:
            await talk.send(length(request.body))
            continue
        _, status, count, *rest = request.target.split(b"/")
        body = bytes(int(count))
        head = b"HTTP/1.1 %b Fine\r\nTransfer-Encoding: chunked\r\n\r\n" % status
        await talk.send(head + chunked(body) if rest else length(body, status=status + b" Fine"))


PATHS = [("/200/0", 200, 0), ("/200/1000000", 200, 1_000_000), ("/404/10/chunked", 404, 10), ("/503/7", 503, 7)]


def asked_by_http_client(port: int) -> list[tuple[int, int]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    found = []
    for path, _, _ in PATHS:
        connection.request("GET", path, headers=KEY)
        response = connection.getresponse()
        found.append((response.status, len(response.read())))
    connection.request("POST", "/", body=iter([b"ab", b"c"]), headers=KEY, encode_chunked=True)
    assert connection.getresponse().read() == b"abc"
    connection.request("GET", "/200/0")
    assert connection.getresponse().status == 401
    connection.close()
    return found


async def test_http_client_keeps_one_connection_for_all(gateway: Any) -> None:
    async with gateway(sized) as rig:
        assert await asyncio.to_thread(asked_by_http_client, rig.port) == [path[1:] for path in PATHS]
        assert rig.gateway.context.counters.connections_accepted == 1
        assert await rig.charged() == [200, 200, 200]


async def test_aiohttp_can_ask_many_at_once(gateway: Any) -> None:
    async with gateway(sized) as rig, aiohttp.ClientSession(f"http://127.0.0.1:{rig.port}", headers=KEY) as session:

        async def ask(path: str) -> tuple[int, int]:
            async with session.get(path) as response:
                return response.status, len(await response.read())

        found = await asyncio.gather(*(ask(path) for path, _, _ in PATHS * 10))
        assert found == [path[1:] for path in PATHS] * 10
        async with session.post("/", data=b"x" * 300_000, expect100=False, chunked=True) as response:
            assert len(await response.read()) == 300_000
        await session.close()


async def test_h11_finds_nothing_wrong_with_what_it_gets(gateway: Any) -> None:
    async with gateway(sized) as rig:
        wire = await rig.connect()
        peer = h11.Connection(h11.CLIENT)
        for path, status, count in [*PATHS, ("/204/0", 204, 0), ("/200/5/chunked", 200, 5)]:
            headers = [("Host", "api.bank.example"), *KEY.items(), ("Transfer-Encoding", "chunked")]
            events = [h11.Request(method="GET", target=path, headers=headers), h11.Data(b"body"), h11.EndOfMessage()]
            await wire.send(*(peer.send(event) or b"" for event in events))
            got, body = 0, 0
            while not isinstance(event := peer.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    peer.receive_data(await wire.reader.read(65_536))
                elif isinstance(event, h11.Response):
                    got = event.status_code
                elif isinstance(event, h11.Data):
                    body += len(event.data)
            assert (got, body) == (status, count)
            peer.start_next_cycle()


async def curl(rig: Rig, *arguments: str) -> tuple[int, str]:
    """The exit code and what it printed."""
    base = f"http://127.0.0.1:{rig.port}"
    words = [word.replace("BASE", base) for word in arguments]
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-m", "10", "-H", "X-API-Key: this-is-the-key-of-tpp", *words, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


CURL: list[tuple[str, tuple[str, ...], str]] = [
    ("get", ("BASE/200/3", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"), "200 3"),
    ("head", ("-I", "BASE/200/3", "-o", "/dev/null", "-w", "%{http_code}"), "200"),
    ("HTTP/1.0", ("-0", "BASE/200/9/chunked", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"), "200 9"),
    ("post", ("-d", "abc", "BASE/"), "abc"),
    ("upload in chunks", ("-T", "/dev/null", "-H", "Transfer-Encoding: chunked", "BASE/x"), ""),
    ("expect", ("-d", "abc", "-H", "Expect: 100-continue", "--expect100-timeout", "0.1", "BASE/"), "abc"),
    ("h2c", ("--http2", "BASE/200/3", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"), "200 1.1"),
    ("two", ("BASE/200/1", "BASE/200/2", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} "), "1 0 "),
]
"""curl is asked only where it is installed."""


@pytest.mark.parametrize(("arguments", "printed"), [case[1:] for case in CURL if shutil.which("curl")])
async def test_curl_gets_what_it_asks_for(gateway: Any, arguments: tuple[str, ...], printed: str) -> None:
    async with gateway(sized) as rig:
        # Bodies of answers to HEAD are the script's mistake; the gateway must not pass them on.
        assert await curl(rig, *arguments) == (0, printed)


async def test_a_402_reads_as_one_in_every_client(gateway: Any) -> None:
    async with gateway(echo, accounts=[account("tpp", "prepaid")]) as rig:
        async with aiohttp.ClientSession(headers=KEY) as session:
            async with session.post(f"http://127.0.0.1:{rig.port}/", data=bytes(3_000_000)) as response:
                assert response.status == 402
                assert (await response.json(content_type=None))["type"] == "urn:quota-sidecar:out-of-credit"
            await session.close()
        await rig.until(lambda: not rig.gateway.connections)
