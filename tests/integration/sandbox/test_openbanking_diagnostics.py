from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from tests.integration.sandbox.kit import read_until_cut

MIB = 1024 * 1024


async def test_echo_tells_what_arrived_to_the_letter(bank_url: str) -> None:
    fields = [["Host", "bank.test"], ["X-Twice", "a"], ["x-twice", "b"], ["X-Odd-CASE", "c"], ["content-length", "5"]]
    lines = "".join(f"{name}: {value}\r\n" for name, value in [*fields, ["Connection", "close"]])
    reader, writer = await asyncio.open_connection(*bank_url.removeprefix("http://").split(":"))
    writer.write(f"PATCH /open-banking/echo/a%2Fb?q=1&q=2 HTTP/1.1\r\n{lines}\r\nhello".encode())
    body = orjson.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    assert (body["method"], body["target"], body["version"]) == ("PATCH", "/open-banking/echo/a%2Fb?q=1&q=2", "1.1")
    assert body["headers"] == [*fields, ["Connection", "close"]]
    assert (body["body_bytes"], body["body_sha256"]) == (5, hashlib.sha256(b"hello").hexdigest())


async def test_echo_does_not_undo_a_content_encoding(client: aiohttp.ClientSession, bank_url: str) -> None:
    packed = gzip.compress(b"hello" * 100)
    headers = {"Content-Encoding": "gzip"}
    async with client.post(f"{bank_url}/open-banking/echo", data=packed, headers=headers) as answer:
        assert (await answer.json())["body_sha256"] == hashlib.sha256(packed).hexdigest()


async def test_echo_takes_a_large_chunked_body(client: aiohttp.ClientSession, bank_url: str) -> None:
    block = bytes(range(256)) * 1024

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield block

    async with client.post(f"{bank_url}/open-banking/echo", data=upload()) as answer:
        body = await answer.json()
    assert (body["body_bytes"], body["body_sha256"]) == (64 * len(block), hashlib.sha256(block * 64).hexdigest())


@pytest.mark.parametrize("query", ["bytes=0", "bytes=1", "bytes=65537", "bytes=3000000", "bytes=65537&chunked=1"])
async def test_a_blob_is_as_long_as_asked_for(client: aiohttp.ClientSession, bank_url: str, query: str) -> None:
    wanted = int(query.split("&")[0].removeprefix("bytes="))
    async with client.get(f"{bank_url}/open-banking/blob?{query}") as answer:
        received = await answer.read()
        length = answer.headers.get("Content-Length")
    assert received == (bytes(range(256)) * (wanted // 256 + 1))[:wanted]
    assert length == (None if "chunked" in query else str(wanted))


@pytest.mark.parametrize("value", ["", "-1", "x", "1e3", str(10**12)])
async def test_a_blob_of_no_known_length_is_refused(client: aiohttp.ClientSession, bank_url: str, value: str) -> None:
    async with client.get(f"{bank_url}/open-banking/blob?bytes={value}") as answer:
        assert (answer.status, (await answer.json())["Errors"][0]["Path"]) == (400, "bytes")


async def test_a_blob_can_be_cut_in_the_middle(client: aiohttp.ClientSession, bank_url: str) -> None:
    headers = {"x-sandbox-abort": "1"}
    async with client.get(f"{bank_url}/open-banking/blob?bytes={2 * MIB}", headers=headers) as answer:
        assert len(await read_until_cut(answer)) == MIB


async def test_a_blob_waits_for_its_reader(client: aiohttp.ClientSession, bank_url: str) -> None:
    """A reader that stops gets no more than the buffers between hold, though gigabytes were asked for."""
    host, port = bank_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
    writer.write(f"GET /open-banking/blob?bytes={2**33} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Content-Length: 8589934592" in head
    # Other requests are served meanwhile: the stream waits, it does not spin.
    for _ in range(20):
        async with client.get(f"{bank_url}/open-banking/health") as answer:
            assert answer.status == 200
    writer.transport.abort()


async def test_the_websocket_sends_back_what_it_gets(client: aiohttp.ClientSession, bank_url: str) -> None:
    async with client.ws_connect(f"{bank_url}/open-banking/ws", max_msg_size=0) as socket:
        await socket.send_str("grüezi")
        assert await socket.receive_str() == "grüezi"
        await socket.send_bytes(bytes(MIB))
        assert await socket.receive_bytes() == bytes(MIB)


async def test_a_plain_request_to_the_websocket_is_refused(client: aiohttp.ClientSession, bank_url: str) -> None:
    async with client.get(f"{bank_url}/open-banking/ws") as answer:
        assert (answer.status, (await answer.json())["Code"]) == (400, "400 Bad Request")
