"""Big bodies through the gateway: what comes out must be what went in."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from loadtests.scenarios.plan import Plan
from loadtests.scenarios.result_counter import End, Reply
from loadtests.scenarios.wire import Line

PIECE: Final = hashlib.shake_256(b"big bodies").digest(64 * 1024)
BLOB_BLOCK: Final = bytes(range(256)) * 256
"""What the sample API's ``blob`` sends over and over."""


@dataclass(frozen=True, slots=True)
class Way:
    """``fetches``: the body is the answer's, not the request's."""

    name: str
    fetches: bool
    chunked: bool


WAYS: Final = (
    Way("PUT by length", False, False),
    Way("PUT chunked", False, True),
    Way("GET by length", True, False),
    Way("GET chunked", True, True),
)


def ways(plan: Plan) -> tuple[Way, ...]:
    """Those that the API has routes for."""
    return tuple(way for way in WAYS if (plan.blob if way.fetches else plan.echo))


def note(way: Way, same: bool) -> str:
    """What is counted of one body."""
    return f"{way.name}: {'same bytes' if same else 'other bytes'}"


def carry(line: Line, way: Way, fields: Mapping[str, str], plan: Plan) -> tuple[Reply, str]:
    """One body one way. Its reply, and what was wrong with the bytes, "" if nothing."""
    return _fetch(line, way, fields, plan) if way.fetches else _send(line, way, fields, plan)


def echoed(body: bytes) -> tuple[int, str] | None:
    """Length and SHA-256 of a request's body by an API's answer: that of the sample API, else the body itself."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        document = json.loads(body)
        return int(document["body_bytes"]), str(document["body_sha256"])
    return (len(body), hashlib.sha256(body).hexdigest()) if body else None


def _send(line: Line, way: Way, fields: Mapping[str, str], plan: Plan) -> tuple[Reply, str]:
    length = {} if way.chunked else {"Content-Length": str(plan.body_bytes)}
    kind = {"Content-Type": "application/octet-stream"}
    reply = line.call("PUT", plan.echo, {**fields, **length, **kind}, _pieces(PIECE, plan.body_bytes))
    if reply.end is not End.ANSWERED or reply.status != 200:
        return reply, f"{reply.end.value}, status {reply.status}"
    found = echoed(reply.body)
    expected = (plan.body_bytes, _digest(PIECE, plan.body_bytes))
    return reply, "" if found == expected else f"{expected} went in, {found} came out"


def _fetch(line: Line, way: Way, fields: Mapping[str, str], plan: Plan) -> tuple[Reply, str]:
    path = f"{plan.blob}?bytes={plan.body_bytes}&chunked={int(way.chunked)}"
    reply, response = line.begin("GET", path, fields)
    if response is None or reply.status != 200:
        line.close()
        return reply, f"{reply.end.value}, status {reply.status}"
    length, digest = 0, hashlib.sha256()
    try:
        while data := response.read(len(BLOB_BLOCK)):
            length += len(data)
            digest.update(data)
    except (OSError, http.client.HTTPException):
        line.close()
        return Reply(End.BROKEN, reply.status, reply.fields), f"broke off after {length:,} bytes"
    found, expected = (length, digest.hexdigest()), (plan.body_bytes, _digest(BLOB_BLOCK, plan.body_bytes))
    return reply, "" if found == expected else f"{expected} was asked for, {found} came"


def _pieces(piece: bytes, total: int) -> Iterator[bytes]:
    for start in range(0, total, len(piece)):
        yield piece[: min(len(piece), total - start)]


@lru_cache(maxsize=4)
def _digest(piece: bytes, total: int) -> str:
    digest = hashlib.sha256()
    for part in _pieces(piece, total):
        digest.update(part)
    return digest.hexdigest()
