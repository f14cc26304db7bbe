"""What hostile callers do, each with a bounded number of sockets and packets a second. Run as a module with the name of
an attack, the gateway's port, sockets, packets a second and seconds, it prints what the gateway answered, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop

HOST = b"Host: api.bank.example\r\n"
HOSTILE_KEY = "key-of-the-hostile-caller-0001"
HOSTILE = b"X-API-Key: %b\r\n" % HOSTILE_KEY.encode()
CHARGED, FREE = b"/accounts", b"/free"
BODY = 65_536
CONNECT_PACKETS: Final = 3
PACKET_BYTES: Final = 1_460


def post(path: bytes, key: bytes, length: int) -> bytes:
    """A head that announces a body."""
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n" % (path, HOST, key, length)


def get(path: bytes, key: bytes, *lines: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b%b\r\n" % (path, HOST, key, b"".join(line + b"\r\n" for line in lines))


class Attack:
    """Sockets to the gateway, a pace for packets, and a count of what came back."""

    def __init__(self, port: int, sockets: int, per_second: float, until: float) -> None:
        self.port = port
        self.sockets = sockets
        self.until = until
        self.seen: Counter[str] = Counter()
        self.rng = random.Random(7)
        self._per_second = per_second
        self._next = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def pace(self, packets: float = 1) -> None:
        """Waits until so many more packets may be sent."""
        now = time.monotonic()
        self._next = max(now, self._next) + packets / self._per_second
        await asyncio.sleep(self._next - now)

    async def connect(self, receive_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        await self.pace(CONNECT_PACKETS)
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port)), 5)
            return await asyncio.open_connection(sock=sock, limit=4096)
        except (OSError, TimeoutError) as error:
            self.seen[type(error).__name__] += 1
            sock.close()
            return None

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> bool:
        """False: the gateway has closed the connection."""
        await self.pace(max(1, -(-len(data) // PACKET_BYTES)))
        if writer.is_closing():
            return False
        writer.write(data)
        return True

    def note(self, head: bytes) -> None:
        self.seen[head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "closed"] += 1

    async def hold(self, first: bytes, more: bytes = b"", *, every_s: float = 5.0, receive_bytes: int = 0) -> None:
        """Each socket sends ``first``, then ``more`` from time to time, and comes back when it is closed."""

        async def one() -> None:
            while not self.over:
                pair = await self.connect(receive_bytes)
                if pair is None:
                    await asyncio.sleep(0.5)
                    continue
                reader, writer = pair
                with contextlib.suppress(ConnectionError):
                    going = not first or await self.send(writer, first)
                    while going and not self.over:
                        if receive_bytes:
                            await asyncio.sleep(every_s)  # nothing is read
                        else:
                            try:
                                data = await asyncio.wait_for(reader.read(4096), every_s)
                                self.note(data)
                                going = bool(data) and data.startswith(b"HTTP/1.1 1")
                                if data and not going and not more:
                                    await asyncio.wait_for(reader.read(), every_s * 4)  # stays, and is silent
                            except TimeoutError:
                                pass
                        if going and more:
                            going = await self.send(writer, more)
                writer.transport.abort()

        await asyncio.gather(*(one() for _ in range(self.sockets)))

    async def ask(self, make: Callable[[], bytes], connections: int) -> None:
        """Requests one after another on so many connections."""

        async def one() -> None:
            while not self.over:
                pair = await self.connect()
                if pair is None:
                    await asyncio.sleep(0.5)
                    continue
                reader, writer = pair
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                    while not self.over and await self.send(writer, make()):
                        head = await reader.readuntil(b"\r\n\r\n")
                        self.note(head)
                        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
                        await reader.readexactly(int(length or b"0"))
                writer.transport.abort()

        await asyncio.gather(*(one() for _ in range(min(connections, self.sockets))))


async def slow_bodies(attack: Attack) -> None:
    await attack.hold(post(CHARGED, HOSTILE, BODY), b"x")


async def anonymous_bodies(attack: Attack) -> None:
    await attack.hold(post(FREE, b"", BODY), b"x")


async def queued_bodies(attack: Attack) -> None:
    await attack.hold(post(CHARGED, HOSTILE, BODY) + bytes(BODY - 1))


async def long_polls(attack: Attack) -> None:
    await attack.hold(get(b"/slow", HOSTILE))


async def upgrades(attack: Attack) -> None:
    await attack.hold(get(b"/ws", HOSTILE, b"Connection: Upgrade", b"Upgrade: websocket"), b"\x89\x00")


async def unread_answers(attack: Attack) -> None:
    await attack.hold(get(b"/bytes/5000000", HOSTILE), receive_bytes=4096)


async def partial_heads(attack: Attack) -> None:
    await attack.hold(b"GET /accounts HTTP/1.1\r\n" + HOST + b"X-Padding: ", b"x" * 1_400, every_s=2.0)


async def refused_then_idle(attack: Attack) -> None:
    await attack.hold(get(CHARGED, b"X-API-Key: no-such-key-0123456789\r\n"))


async def silent(attack: Attack) -> None:
    await attack.hold(b"")


async def invented_keys(attack: Attack) -> None:
    await attack.ask(lambda: get(CHARGED, b"X-API-Key: invented-%030x\r\n" % attack.rng.getrandbits(120)), 150)


async def odd_paths(attack: Attack) -> None:
    odd = (b"%2520", b"%C3%89", b"%E2%84%AA", b"%20", b"%3Fa", b"A")

    def make() -> bytes:
        path = b"/Accounts" + b"".join(attack.rng.choice(odd) for _ in range(250))
        return get(path, b"")

    await attack.ask(make, 50)


ATTACKS: Final[dict[str, Callable[[Attack], Awaitable[None]]]] = {
    "slow-bodies": slow_bodies,
    "anonymous-bodies": anonymous_bodies,
    "queued-bodies": queued_bodies,
    "long-polls": long_polls,
    "upgrades": upgrades,
    "unread-answers": unread_answers,
    "partial-heads": partial_heads,
    "refused-then-idle": refused_then_idle,
    "silent": silent,
    "invented-keys": invented_keys,
    "odd-paths": odd_paths,
}


async def main(name: str, port: int, sockets: int, per_second: float, seconds: float) -> None:
    attack = Attack(port, sockets, per_second, time.monotonic() + seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name](attack)
    print(json.dumps(attack.seen), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen, at, count, packets, how_long = sys.argv[1:]
    uvloop.run(main(chosen, int(at), int(count), float(packets), float(how_long)))
