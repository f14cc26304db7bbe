"""An upstream that costs as little as can be: a fixed answer for each request, and for ``/bytes/N`` one of N bytes. Run
as a module, it prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

BODY = (
    b'{"Data":{"Account":[{"AccountId":"acc-001","Currency":"GBP","AccountType":"Personal","AccountSubType":'
    b'"CurrentAccount","Nickname":"Household"},{"AccountId":"acc-002","Currency":"GBP","AccountType":"Business",'
    b'"AccountSubType":"CurrentAccount","Nickname":"Business"},{"AccountId":"acc-003","Currency":"EUR","AccountType":'
    b'"Personal","AccountSubType":"Savings","Nickname":"Holiday home"}]},"Links":{"Self":'
    b'"/open-banking/v3.1/aisp/accounts"},"Meta":{"TotalPages":1}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
SIZED = b"/bytes/"
SIZE_MAX = 100_000_000
_sized: dict[int, bytes] = {}


def answer_of(size: int) -> bytes:
    """A whole response with a body of so many bytes; made once."""
    answer = _sized.get(size)
    if answer is None:
        if not 0 <= size <= SIZE_MAX:
            raise ValueError(f"{size} bytes are not served")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size
        answer = _sized[size] = head + bytes(size)
    return answer


class Upstream(asyncio.Protocol):
    """Bodies of requests are thrown away. ``rest``: of a head; ``left``: bytes of a body that are still to come."""

    def __init__(self) -> None:
        self.rest = b""
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        if self.left or SIZED in data:
            self._sized(data)
            return
        requests = data.count(b"\r\n\r\n")
        self.rest = data[data.rfind(b"\r\n\r\n") + 4 :] if requests else data
        if requests:
            self.transport.write(ANSWER * requests)

    def _sized(self, data: bytes) -> None:
        self.rest = b""
        while data:
            if self.left:
                taken = min(self.left, len(data))
                self.left -= taken
                data = data[taken:]
                if not self.left:
                    self.transport.write(ANSWER)
                continue
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self.rest = data
                return
            data = rest
            method, target, _ = head.split(b" ", 2)
            length = head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0].strip()
            if method != b"GET" and int(length or b"0"):
                self.left = int(length)
            elif method == b"GET" and target.startswith(SIZED):
                self.transport.write(answer_of(int(target[len(SIZED) :])))
            else:
                self.transport.write(ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with whoever started it


if __name__ == "__main__":
    uvloop.run(main())
