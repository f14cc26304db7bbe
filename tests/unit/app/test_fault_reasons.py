"""Reasons of failures, as libraries give them and as they are said."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import httpx
import pytest
import redis
import redis.asyncio
from redis.asyncio.sentinel import Sentinel

from sidecar.basics.fault_reasons import reason_of

CLOSED = "the other side closed the connection"


async def by_asyncio(port: int) -> None:
    await asyncio.open_connection("127.0.0.1", port)


async def by_aiohttp(port: int) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/"):
        pass


async def by_httpx(port: int) -> None:
    async with httpx.AsyncClient(verify=False) as client:
        await client.get(f"http://127.0.0.1:{port}/")


async def by_redis(port: int) -> None:
    async with redis.asyncio.Redis(host="127.0.0.1", port=port) as client:
        await client.ping()


CLIENTS: dict[str, tuple[Callable[[int], Awaitable[None]], str]] = {
    "asyncio": (by_asyncio, "connection refused"),
    "aiohttp": (by_aiohttp, "127.0.0.1:{port}: connection refused"),
    "httpx": (by_httpx, "connection refused"),
    "redis": (by_redis, "127.0.0.1:{port}: connection refused"),
}


@pytest.mark.parametrize(("connect", "expected"), CLIENTS.values(), ids=CLIENTS)
async def test_a_refused_connection_is_told_in_words_by_whatever_library(
    connect: Callable[[int], Awaitable[None]], expected: str, unused_tcp_port: int
) -> None:
    with pytest.raises(Exception) as caught:  # each library's own
        await connect(unused_tcp_port)
    assert reason_of(caught.value) == expected.format(port=unused_tcp_port)


async def test_a_sentinel_without_a_primary_is_told_without_its_clients(unused_tcp_port: int) -> None:
    group = Sentinel([("127.0.0.1", unused_tcp_port)])
    with pytest.raises(Exception) as caught:
        await group.discover_master("main")
    for client in group.sentinels:
        with suppress(Exception):
            await client.aclose()
    assert reason_of(caught.value) == "no Sentinel knows a primary of 'main'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the host name is not known"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "the port is in use"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "no such file or directory"),
        (TimeoutError(), "no answer in time"),
        (ValueError(), "value error"),
        (KeyError("x"), "'x' is missing"),
        (RuntimeError("broken by <a.B(<c.D()>, x=1)> at noon"), "broken by at noon"),
        (RuntimeError("1 < 2"), "1 < 2"),
        (redis.TimeoutError("Timeout connecting to server"), "no answer in time"),
        (redis.TimeoutError("Timeout reading from 10.0.0.7:6379"), "10.0.0.7:6379: no answer in time"),
        (redis.ConnectionError("Connection closed by server."), CLOSED),
        (
            redis.ConnectionError("Error while reading from 10.0.0.7:6379 : (104, 'Connection reset by peer')"),
            f"10.0.0.7:6379: {CLOSED}",
        ),
        (redis.ConnectionError("Error 104 while writing to socket. Connection reset by peer."), CLOSED),
        (
            redis.exceptions.RedisClusterException(
                "Redis Cluster cannot be connected. Please provide at least one reachable node: Timeout"
            ),
            "no node of the Cluster can be reached",
        ),
        (RuntimeError("[Errno 111] Connect call failed ('127.0.0.1', 9)"), "connection refused"),
    ],
)
def test_a_reason_has_no_number_no_tuple_and_no_object_in_it(error: Exception, expected: str) -> None:
    assert reason_of(error) == expected
