"""Routes of the sample API that no bank has: they show what a gateway in between did to a request.

Bodies are streamed both ways, never held: a body of any size passes in constant memory, at the reader's pace.
"""

from __future__ import annotations

import hashlib

from aiohttp import WSMsgType, web

from sidecar.sandbox.bank.bank_wire import bad_request, json_answer

BLOCK = bytes(range(256)) * 256
#: Enough for tests of back-pressure over loopback; a mistyped number must not run for hours.
BLOB_BYTES_MAX = 16 * 1024**3
WEBSOCKET_MESSAGE_BYTES_MAX = 16 * 1024**2


async def echo(request: web.Request) -> web.Response:
    """Answers what arrived: method, target, version, header fields in order, body length and SHA-256."""
    length, digest = 0, hashlib.sha256()
    async for chunk in request.content.iter_any():
        length += len(chunk)
        digest.update(chunk)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers]
    return json_answer({
        "method": request.method,
        "target": request.raw_path,
        "version": f"{request.version.major}.{request.version.minor}",
        "headers": headers,
        "body_bytes": length,
        "body_sha256": digest.hexdigest(),
    })  # fmt: skip


def blob_byte_count(request: web.Request) -> int:
    text = request.query.get("bytes", "")
    if not (text.isascii() and text.isdigit()) or len(text) > 12 or int(text) > BLOB_BYTES_MAX:
        message = f"bytes is not a number from 0 to {BLOB_BYTES_MAX}"
        raise bad_request("UK.OBIE.Field.Invalid", message, "bytes")
    return int(text)


async def blob(request: web.Request, *, halved: bool) -> web.StreamResponse:
    """Streams ``?bytes=N`` bytes (0, 1, … 255, 0, …); ``?chunked=1`` without announcing the length.

    ``halved`` breaks the connection off when half of them are out.
    """
    total = blob_byte_count(request)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    if request.query.get("chunked") == "1":
        response.enable_chunked_encoding()
    else:
        response.content_length = total
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    left = total // 2 if halved else total
    while left > 0:
        # write() waits while the connection's buffer is full: that is the back-pressure.
        await response.write(BLOCK if left >= len(BLOCK) else BLOCK[:left])
        left -= len(BLOCK)
    if halved:
        hang_up(request)
    else:
        await response.write_eof()
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Sends every text and binary message back as it came."""
    socket = web.WebSocketResponse(max_msg_size=WEBSOCKET_MESSAGE_BYTES_MAX)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def hang_up(request: web.Request) -> None:
    """Closes the connection after what has been written so far, in the middle of a message if need be."""
    if request.transport is not None:
        request.transport.close()
