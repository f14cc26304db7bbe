"""The API of the hostile runs: answers at once, ``/slow`` never, ``/ws`` with an upgrade, ``/bytes/N`` with N bytes.
Run as a module, it prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
BYTES = b"/bytes/"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the gateway."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1]
            length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))
            if target == b"/slow":
                await reader.read()
                break
            if target == b"/ws":
                writer.write(SWITCH)
                await reader.read()
                break
            if target.startswith(BYTES):
                size = int(target[len(BYTES) :])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size // 65_536):
                    writer.write(bytes(65_536))
                    await writer.drain()
                writer.write(bytes(size % 65_536))
            else:
                writer.write(ANSWER)
            await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
