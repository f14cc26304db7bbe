"""Prints how long the framing code takes: microseconds a head, and a body.

    python loadtests/bench_framing.py [--rounds 200]

Each figure is the best of the rounds, since everything else that runs on a machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable

from sidecar.gateway.http1.body import ChunkedDecoder
from sidecar.gateway.http1.framing import HeadParser
from sidecar.gateway.http1.target import routing_path

_LINE = b"GET /open-banking/v3.1/aisp/accounts?page=2 HTTP/1.1"
_SMALL = [b"Host: 127.0.0.1:8080", b"X-API-Key: 5f2c1f4e9a8b7c6d", b"Accept: */*"]
_TYPICAL = [
    b"Host: api.bank.example",
    b"User-Agent: tpp-client/2.4.1 (linux; python 3.11)",
    b"Accept: application/json",
    b"Accept-Encoding: gzip, deflate, br",
    b"Connection: keep-alive",
    b"X-API-Key: 5f2c1f4e9a8b7c6d",
    b"x-fapi-interaction-id: 93bac548-d2de-4546-b106-880a5018460d",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
]
_LARGE = [
    *_TYPICAL,
    b"Authorization: Bearer " + b"eyJhbGciOiJQUzI1NiIsInR5cCI6IkpXVCJ9." * 30,
    b"x-jws-signature: " + b"eyJodHRwOi8vb3BlbmJhbmtpbmcub3JnLnVrL2lhdCI6MH0." * 8,
    b"x-fapi-auth-date: Sun, 10 Sep 2017 19:43:31 GMT",
    b"x-fapi-customer-ip-address: 104.25.212.99",
    b"x-customer-user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    b"X-Idempotency-Key: FRESCO.21302.GFX.20",
    b"X-Forwarded-For: 198.51.100.7, 203.0.113.9",
    b"X-Forwarded-Proto: https",
    b"X-Request-Id: 8e6f2a4c9d1b47d0a3c5e7f901234567",
    b"Accept-Language: en-GB,en;q=0.9",
    b"Cache-Control: no-cache",
    b"Pragma: no-cache",
]
_POST = [*_TYPICAL, b"Content-Type: application/json", b"Content-Length: 446"]
_RESPONSE = [
    b"Content-Type: application/json; charset=utf-8",
    b"Content-Length: 446",
    b"Date: Sun, 10 Sep 2017 19:43:31 GMT",
    b"Server: nginx",
    b"x-fapi-interaction-id: 93bac548-d2de-4546-b106-880a5018460d",
]


def _head(line: bytes, lines: list[bytes]) -> bytes:
    return b"\r\n".join([line, *lines, b"", b""])


def _cases() -> dict[str, Callable[[], object]]:
    client = HeadParser([b"traceparent", b"x-fapi-interaction-id", b"x-idempotency-key"], [b"x-api-key", b"x-tpp-id"])
    upstream = HeadParser(drop=[b"x-credits-remaining", b"x-credits-charged"])
    small, typical, large = (_head(_LINE, lines) for lines in (_SMALL, _TYPICAL, _LARGE))
    post = _head(b"POST /open-banking/v3.1/pisp/payments HTTP/1.1", _POST)
    response = _head(b"HTTP/1.1 200 OK", _RESPONSE)
    chunked = b"1be\r\n" + bytes(446) + b"\r\n0\r\n\r\n"
    megabyte = [b"100000\r\n", *[bytes(65536)] * 16, b"\r\n0\r\n\r\n"]

    def body(pieces: list[bytes], plain: bool) -> None:
        decoder = ChunkedDecoder(upstream.response_rules, plain=plain)
        for piece in pieces:
            decoder.feed(piece)

    return {
        f"request, small: 3 fields, {len(small)} bytes": lambda: client.request(small),
        f"request, typical: 8 fields, {len(typical)} bytes": lambda: client.request(typical),
        f"request, large: 20 fields, {len(large)} bytes": lambda: client.request(large),
        f"request with a length: 10 fields, {len(post)} bytes": lambda: client.request(post),
        f"response: 5 fields, {len(response)} bytes": lambda: upstream.response(response, b"GET"),
        "path for routing": lambda: routing_path(b"/open-banking/v3.1/aisp/accounts"),
        "chunked body of 446 bytes, as chunks": lambda: body([chunked], False),
        "chunked body of 446 bytes, as plain bytes": lambda: body([chunked], True),
        "chunk of a megabyte in 64 KiB pieces": lambda: body(megabyte, False),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=200, help="rounds of 500 calls (default: 200)")
    rounds = arguments.parse_args().rounds
    for name, call in _cases().items():
        microseconds = min(timeit.repeat(call, number=500, repeat=rounds)) / 500 * 1e6
        print(f"{microseconds:7.2f} µs  {name}")


if __name__ == "__main__":
    main()
