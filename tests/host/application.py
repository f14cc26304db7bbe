"""An application as it stands in a pod: ``python -m tests.host.application HOST:PORT ...``. It knows nothing
of a gateway.

Each answer says on which port it was asked and by whom, and how many connections there were on that port so far.
"""

from __future__ import annotations

import asyncio
import json
import sys


async def main(places: list[str]) -> None:
    counts: dict[int, int] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        counts[port] = counts.get(port, 0) + 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                peer = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
                fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
                document = {
                    "port": port, "peer": peer, "path": head.split(b" ")[1].decode(), "connections": counts[port],
                    "forwarded_for": fields.get("x-forwarded-for"),
                }  # fmt: skip
                body = json.dumps(document).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    servers = []
    for place in places:
        host, _, port = place.rpartition(":")
        servers.append(await asyncio.start_server(serve, host.strip("[]") or None, int(port)))
    print(json.dumps({"ready": places}), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
