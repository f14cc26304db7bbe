"""Servers that others wrote, which note every call that a handler began: the file's lines are what the API did."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.integration.gateway.wire import TIMEOUT_S

EXPRESS = """
const fs = require('fs');
const express = require('express');
const app = express();
app.use((request, response, next) => {
  fs.appendFileSync(process.argv[2], (request.get('X-TPP-Id') || '') + '\\n');
  next();
});
app.use(express.json());
app.all('/v1/transactions', (request, response) => response.set('X-Served', 'dear').send('x'));
app.use((request, response) => response.set('X-Served', 'cheap').send('x'));
app.listen(Number(process.argv[1]), '127.0.0.1');
"""

FLASK = """
import sys
import flask
app = flask.Flask(__name__)

@app.before_request
def note():
    with open(LOG, 'a') as file:
        file.write(flask.request.headers.get('X-TPP-Id', '') + '\\n')
    flask.request.get_data()

@app.route('/v1/transactions', methods=['GET', 'POST', 'DELETE'])
def dear():
    return flask.Response('x', headers={'X-Served': 'dear'})

@app.route('/', defaults={'rest': ''}, methods=['GET', 'POST', 'DELETE'])
@app.route('/<path:rest>', methods=['GET', 'POST', 'DELETE'])
def cheap(rest):
    return flask.Response('x', headers={'X-Served': 'cheap'})
"""

WERKZEUG = """
from werkzeug.serving import WSGIRequestHandler, run_simple
WSGIRequestHandler.protocol_version = 'HTTP/1.1'
run_simple('127.0.0.1', PORT, app, threaded=True)
"""

FASTAPI = """
import fastapi
app = fastapi.FastAPI()

@app.api_route('/v1/transactions', methods=['GET', 'HEAD', 'POST', 'DELETE'])
async def dear(request: fastapi.Request):
    return await answer(request, 'dear')

@app.api_route('/{rest:path}', methods=['GET', 'HEAD', 'POST', 'DELETE'])
async def cheap(request: fastapi.Request):
    return await answer(request, 'cheap')

async def answer(request, what):
    with open(LOG, 'a') as file:
        file.write(request.headers.get('x-tpp-id', '') + '\\n')
    await request.body()
    return fastapi.Response('x', headers={'X-Served': what})
"""

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; send_timeout 2s; client_body_timeout 2s;
    log_format who '$http_x_tpp_id';
    server {{
        listen 127.0.0.1:{port};
        access_log {folder}/log who if=$success;
        location = /v1/transactions {{ add_header X-Served dear; return 200 x; }}
        location / {{ add_header X-Served cheap; return 200 x; }}
    }}
    map $status $success {{ ~^2 1; default 0; }}
}}
"""

NAMES = ("express", "werkzeug", "gunicorn", "uvicorn", "nginx")


def command_of(name: str, folder: Path, port: int) -> list[str]:
    """What starts the server. Skips the test if it is not installed."""
    log = folder / "log"
    log.touch()
    if name == "express":
        node = shutil.which("node")
        if node is None or subprocess.run([node, "-e", "require('express')"], capture_output=True).returncode:
            pytest.skip("needs node with express (npm install express, NODE_PATH)")
        return [node, "-e", EXPRESS, str(port), str(log)]
    if name == "nginx":
        if shutil.which("nginx") is None:
            pytest.skip("needs nginx")
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
        return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    modules = {"werkzeug": ("flask",), "gunicorn": ("flask", "gunicorn"), "uvicorn": ("fastapi", "uvicorn")}[name]
    missing = [each for each in modules if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (pip install)")
    source = f"LOG, PORT = {str(log)!r}, {port}\n" + (FASTAPI if name == "uvicorn" else FLASK)
    (folder / "api.py").write_text(source + (WERKZEUG if name == "werkzeug" else ""))
    python = sys.executable
    if name == "werkzeug":
        return [python, str(folder / "api.py")]
    if name == "gunicorn":
        # As `gunicorn api:app` does it, with threads, so that connections are kept.
        return [
            python,
            "-m",
            "gunicorn",
            "-b",
            f"127.0.0.1:{port}",
            "--threads",
            "8",
            "--chdir",
            str(folder),
            "api:app",
        ]
    return [python, "-m", "uvicorn", "--port", str(port), "--app-dir", str(folder), "--no-access-log", "api:app"]


class Server:
    """One that runs."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def accounts(self) -> list[str]:
        """Whose calls it did, in order."""
        return self._log.read_text().split()


@asynccontextmanager
async def serving(name: str, folder: Path) -> AsyncIterator[Server]:
    port = free_port()
    command = command_of(name, folder, port)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(2 * TIMEOUT_S):
            while True:
                assert process.returncode is None, f"{name} ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield Server(port, folder / "log")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
