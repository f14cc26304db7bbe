"""Clients that others wrote get from the API through the gateway what they get from the API, and pay once a call."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect as connect_websocket

from sidecar.gateway.parameters import UpstreamTarget
from tests.adversary.honest_api import EVENTS, bank
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import Rig

KEY = "this-is-the-key-of-tpp"
HEADERS = {"X-API-Key": KEY}
MEGABYTE = 1_000_000


@asynccontextmanager
async def open_bank(gateway: Any) -> AsyncIterator[Rig]:
    async with bank() as (_, port), gateway(echo, upstream=UpstreamTarget(port=port)) as rig:
        yield rig


def needs_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name} (pip install {name})")


def needs_program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


async def output_of(*command: str) -> list[str]:
    """The words that a program prints; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode().split()


CURL = [
    (["BASE/accounts"], "200"),
    (["-I", "BASE/accounts"], "200"),
    (["-d", '{"a": 1}', "BASE/payments"], "201"),
    (["-d", "x" * 2_000, "-H", "Expect: 100-continue", "BASE/echo"], "200"),
    (["-T", "FILE", "-H", "Transfer-Encoding: chunked", "-X", "POST", "BASE/files"], "200"),
    (["-T", "FILE", "-X", "POST", "-H", "Expect: 100-continue", "BASE/files"], "200"),
    (["--limit-rate", "2M", "-T", "FILE", "-X", "POST", "BASE/files"], "200"),
    (["-N", "BASE/events"], "200"),
    (["BASE/poll"], "204"),
    (["--compressed", "BASE/accounts?from=2026-01-01T00%3A00%3A00&name=Zo%C3%AB%20B"], "200"),
    (["-0", "BASE/accounts"], "200"),
    (["-X", "OPTIONS", "-H", "Origin: https://a.example", "BASE/accounts"], "204"),
    (["--retry", "2", "BASE/accounts/missing"], "404"),
]


async def test_curl(gateway: Any, tmp_path: Path) -> None:
    curl = needs_program("curl")
    file = tmp_path / "file"
    file.write_bytes(bytes(MEGABYTE))
    async with open_bank(gateway) as rig:
        for arguments, status in CURL:
            words = [
                each.replace("BASE", f"http://127.0.0.1:{rig.port}").replace("FILE", str(file)) for each in arguments
            ]
            said = await output_of(
                curl, "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"X-API-Key: {KEY}", *words
            )
            assert said == [status], arguments
        assert len(await rig.charged()) == len(CURL) - 1


async def test_http_client(gateway: Any) -> None:
    def ask(port: int) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        statuses = []
        for method, path, body in (
            ("GET", "/accounts", None), ("HEAD", "/accounts", None), ("POST", "/payments", b"{}"),
            ("POST", "/files", iter([bytes(300_000)] * 3)), ("GET", "/events", None), ("GET", "/poll", None),
        ):  # fmt: skip
            connection.request(method, path, body=body, headers=HEADERS, encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        return statuses

    async with open_bank(gateway) as rig:
        assert await asyncio.to_thread(ask, rig.port) == [200, 200, 201, 200, 200, 204]
        assert len(await rig.charged()) == 6


async def test_requests_with_a_session_and_retries(gateway: Any) -> None:
    needs_module("requests")

    def ask(port: int) -> list[int]:
        import requests
        from requests.adapters import HTTPAdapter, Retry

        base = f"http://127.0.0.1:{port}"
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=Retry(3, status_forcelist=[502, 503])))
            session.headers.update(HEADERS)
            with session.get(base + "/events", stream=True) as stream:
                assert len(list(stream.iter_lines(delimiter=b"\n\n"))) >= EVENTS
            return [
                session.get(base + "/accounts/1/transactions", params={"to": "a b", "n": "é"}).status_code,
                session.head(base + "/accounts").status_code,
                session.post(base + "/payments", json={"a": 1}).status_code,
                session.post(base + "/files", data=(bytes(100_000) for _ in range(10))).status_code,
                session.post(base + "/consents", headers={"x-idempotency-key": "k"}, data=b"{}").status_code,
                session.get(base + "/poll").status_code,
            ]

    async with open_bank(gateway) as rig:
        assert await asyncio.to_thread(ask, rig.port) == [200, 200, 201, 200, 201, 204]
        assert len(await rig.charged()) == 7


async def test_httpx_with_many_at_once(gateway: Any) -> None:
    needs_module("httpx")
    import httpx

    async with open_bank(gateway) as rig, httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}") as client:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield bytes(100_000)

        answers = await asyncio.gather(
            *(client.get(f"/accounts/{number}/balances", headers=HEADERS) for number in range(50)),
            client.post("/files", content=pieces(), headers=HEADERS),
            client.get("/poll", headers=HEADERS),
        )
        assert [answer.status_code for answer in answers] == [200] * 51 + [204]
        async with client.stream("GET", "/events", headers=HEADERS) as stream:
            assert [line async for line in stream.aiter_lines() if line] == [f"data: {n}" for n in range(EVENTS)]
        assert len(await rig.charged()) == 53


async def test_aiohttp_with_expect_chunks_and_a_websocket(gateway: Any) -> None:
    async with (
        open_bank(gateway) as rig,
        aiohttp.ClientSession(f"http://127.0.0.1:{rig.port}", headers=HEADERS) as session,
    ):
        async with session.post("/echo", data=bytes(200_000), expect100=True) as answer:
            assert (answer.status, len(await answer.read())) == (200, 200_000)
        async with session.post("/files", data=bytes(MEGABYTE), chunked=True, compress="gzip") as answer:
            assert answer.status == 200
        async with session.ws_connect("/ws") as ws:
            await ws.send_str("abc")
            assert await ws.receive_str() == "cba"
        async with session.get("/events") as answer:
            assert (await answer.read()).count(b"data") == EVENTS
        await session.close()
        assert sorted(await rig.charged()) == [101, 200, 200, 200]


async def test_websockets(gateway: Any) -> None:
    async with open_bank(gateway) as rig:
        address = f"ws://127.0.0.1:{rig.port}/ws"
        async with connect_websocket(address, additional_headers=HEADERS, proxy=None) as ws:
            for text in ("abc", "x" * 100_000):
                await ws.send(text)
                assert await ws.recv() == text[::-1]
        assert await rig.charged() == [101]


NODE = """
const http = require('http');
const [port, key] = [Number(process.argv[1]), process.argv[2]];
const agent = new http.Agent({keepAlive: true});
const ask = (method, path, body, headers = {}) => new Promise((done, failed) => {
  const request = http.request({port, host: '127.0.0.1', method, path, agent, headers: {'X-API-Key': key, ...headers}},
    (response) => { response.resume(); response.on('end', () => done(response.statusCode)); });
  request.on('error', failed);
  if (headers.Expect) request.on('continue', () => request.end(body)); else request.end(body);
  if (headers.Expect) request.flushHeaders();
});
(async () => {
  const base = `http://127.0.0.1:${port}`;
  const said = [
    await ask('GET', '/accounts'), await ask('HEAD', '/accounts'), await ask('POST', '/payments', '{}'),
    await ask('POST', '/echo', 'x'.repeat(1000), {Expect: '100-continue', 'Content-Length': 1000}),
    await ask('POST', '/files', 'x'.repeat(1000000), {'Transfer-Encoding': 'chunked'}),
    await ask('GET', '/events'), await ask('GET', '/poll'), await ask('GET', '/accounts/missing'),
  ];
  for (const path of ['/accounts?a=%20', '/events']) {
    const answer = await fetch(base + path, {headers: {'X-API-Key': key}});
    await answer.text();
    said.push(answer.status);
  }
  console.log(said.join(' '));
  process.exit(0);
})();
"""


async def test_node(gateway: Any) -> None:
    node = needs_program("node")
    async with open_bank(gateway) as rig:
        said = await output_of(node, "-e", NODE, str(rig.port), KEY)
        assert said == ["200", "200", "201", "200", "200", "200", "204", "404", "200", "200"]
        assert len(await rig.charged()) == 9


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.io.ByteArrayInputStream;
import java.time.Duration;
import java.util.concurrent.*;

public class Client {
    static HttpRequest.Builder to(String[] a, String path) {
        return HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + a[0] + path)).header("X-API-Key", a[1])
            .timeout(Duration.ofSeconds(20));
    }

    public static void main(String[] a) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers h2c
        var text = HttpResponse.BodyHandlers.ofString();
        var big = new byte[1_000_000];
        HttpRequest[] requests = {
            to(a, "/accounts").build(),
            to(a, "/accounts").method("HEAD", HttpRequest.BodyPublishers.noBody()).build(),
            to(a, "/payments").POST(HttpRequest.BodyPublishers.ofString("{}")).build(),
            to(a, "/echo").expectContinue(true).POST(HttpRequest.BodyPublishers.ofString("abc")).build(),
            to(a, "/files").POST(HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(big))).build(),
            to(a, "/events").build(),
            to(a, "/poll").build(),
            to(a, "/accounts/missing").build(),
        };
        StringBuilder said = new StringBuilder();
        for (HttpRequest request : requests) said.append(client.send(request, text).statusCode()).append(' ');
        var first = new CompletableFuture<String>();
        WebSocket ws = client.newWebSocketBuilder().header("X-API-Key", a[1])
            .buildAsync(URI.create("ws://127.0.0.1:" + a[0] + "/ws"), new WebSocket.Listener() {
                public CompletionStage<?> onText(WebSocket ws, CharSequence data, boolean last) {
                    first.complete(data.toString());
                    return null;
                }
            }).join();
        ws.sendText("abc", true).join();
        System.out.println(said + first.get(20, TimeUnit.SECONDS));
        ws.sendClose(WebSocket.NORMAL_CLOSURE, "").join();
        System.exit(0);
    }
}
"""


async def test_java(gateway: Any, tmp_path: Path) -> None:
    java = needs_program("java")
    needs_program("javac")
    source = tmp_path / "Client.java"
    source.write_text(JAVA)
    async with open_bank(gateway) as rig:
        said = await output_of(java, "-XX:TieredStopAtLevel=1", str(source), str(rig.port), KEY)
        assert said == [*["200", "200", "201", "200", "200", "200", "204", "404"], "cba"]
        assert len(await rig.charged()) == 8
