"""The proxy that a Python team would write: aiohttp's server and client, redis-py, one atomic decrement a request.

``python -m loadtests.compare.peers.aiohttp_proxy PORT UPSTREAM_PORT VALKEY_SOCKET KEY ACCOUNT``
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web
from redis.asyncio import Redis

DROPPED = {"connection", "keep-alive", "x-api-key", "transfer-encoding", "te", "upgrade", "host"}


class Proxy:
    def __init__(self, upstream: str, valkey: Redis, accounts: dict[str, str]) -> None:
        self.upstream = upstream
        self.valkey = valkey
        self.accounts = accounts
        self.session: ClientSession | None = None

    async def handle(self, request: web.Request) -> web.Response:
        account = self.accounts.get(request.headers.get("X-API-Key", ""))
        if account is None:
            return web.Response(status=401)
        balance = f"compare:balance:{account}"
        left = await self.valkey.decrby(balance, 1)
        if left < 0:
            await self.valkey.incrby(balance, 1)
            return web.Response(status=402)
        assert self.session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        headers.update({
            "Host": request.host, "Via": "1.1 aiohttp", "X-Forwarded-For": request.remote or "",
            "X-Forwarded-Proto": request.scheme, "X-Forwarded-Host": request.host,
        })  # fmt: skip
        async with self.session.request(
            request.method, self.upstream + request.path_qs, headers=headers,
            data=request.content if request.can_read_body else None, allow_redirects=False,
        ) as answer:  # fmt: skip
            body = await answer.read()
            out = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
            out.update({
                "Via": "1.1 aiohttp", "X-Credits-Remaining": str(left), "X-Credits-Charged": "1",
                "X-Credits-Currency": "GBP", "RateLimit-Policy": '"credit";q=1000000000000',
                "RateLimit": f'"credit";r={left}',
            })  # fmt: skip
            return web.Response(status=answer.status, body=body, headers=out)


async def main(port: int, upstream_port: int, socket: str, key: str, account: str) -> None:
    valkey = Redis(unix_socket_path=socket, max_connections=512)
    proxy = Proxy(f"http://127.0.0.1:{upstream_port}", valkey, {key: account})
    async with ClientSession(
        connector=TCPConnector(limit=0, keepalive_timeout=300), auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    ) as session:  # fmt: skip
        proxy.session = session
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=300)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]))
