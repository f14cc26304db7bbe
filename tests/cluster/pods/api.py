"""The API behind the gateway: answers every request with its pod's name, on ``PORT`` (8080)."""

from __future__ import annotations

import os

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    return web.json_response({"pod": os.environ.get("HOSTNAME"), "path": request.path, "peer": request.remote})


def main() -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    web.run_app(application, host=None, port=int(os.environ.get("PORT", "8080")), print=None, shutdown_timeout=5)


if __name__ == "__main__":
    main()
