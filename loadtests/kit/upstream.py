"""An upstream that costs as little as can be: a fixed answer for each request. Run as a module, it prints its port."""

from __future__ import annotations

import asyncio
import sys

import uvloop

BODY = (
    b'{"Data":{"Account":[{"AccountId":"acc-001","Currency":"GBP","AccountType":"Personal","AccountSubType":'
    b'"CurrentAccount","Nickname":"Household"},{"AccountId":"acc-002","Currency":"GBP","AccountType":"Business",'
    b'"AccountSubType":"CurrentAccount","Nickname":"Business"},{"AccountId":"acc-003","Currency":"EUR","AccountType":'
    b'"Personal","AccountSubType":"Savings","Nickname":"Holiday home"}]},"Links":{"Self":'
    b'"/open-banking/v3.1/aisp/accounts"},"Meta":{"TotalPages":1}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        requests = data.count(b"\r\n\r\n")
        self.rest = data[data.rfind(b"\r\n\r\n") + 4 :] if requests else data
        if requests:
            self.transport.write(ANSWER * requests)  # type: ignore[attr-defined]


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with whoever started it


if __name__ == "__main__":
    uvloop.run(main())
