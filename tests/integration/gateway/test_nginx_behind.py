"""nginx as the API: it compresses nothing for requests with Via."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.parameters import UpstreamTarget
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import get
from tests.integration.gateway.wire import TIMEOUT_S

CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; gzip on; gzip_types *;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen unix:{folder}/socket; root {folder}/www; }}
}}
"""
CONTENT = b'{"Data": {"Account": []}}\n' * 1_000


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Path]:
    """The socket of an nginx with one file to serve."""
    (folder / "www").mkdir()
    (folder / "www" / "accounts").write_bytes(CONTENT)
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder))
    process = await asyncio.create_subprocess_exec("nginx", "-p", folder, "-c", folder / "nginx.conf")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not (folder / "socket").exists():
                await asyncio.sleep(0.01)
        yield folder / "socket"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("via", [False, True])
async def test_nginx_compresses_for_the_gateway_unless_it_sends_via(gateway: Any, tmp_path: Path, via: bool) -> None:
    async with (
        nginx(tmp_path) as socket,
        gateway(echo, upstream=UpstreamTarget(path=str(socket)), via_on_requests=via) as rig,
    ):
        answer = await rig.ask(get(b"/accounts", b"Accept-Encoding: gzip"))
        assert answer.status == 200
        if via:
            assert answer.body == CONTENT  # which is why it is off
        else:
            assert gzip.decompress(answer.body) == CONTENT
            assert len(answer.body) < len(CONTENT) / 30
