"""Several data-plane processes on one port (SO_REUSEPORT), watched by a parent that serves the admin side for all of
them.

A worker is this program again, with the port, a Unix socket for its own admin side, and a pipe from its parent in
its environment. The pipe's end tells it that the parent is gone, so that no worker outlives it. One that dies is
started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from sidecar import __version__
from sidecar.app import assemble
from sidecar.app.accounts_view import AccountsView
from sidecar.app.admin_endpoints import AdminEndpoints, admin_token
from sidecar.app.admin_server import AdminServer
from sidecar.app.configuration import Config
from sidecar.app.data_plane import Health
from sidecar.app.ledger_start import check_ledger
from sidecar.app.listen_fault import CannotListen
from sidecar.app.metrics_merge import merge
from sidecar.app.serve import Ports, Ready, drain_s_max, health_server, until_drained
from sidecar.app.signals import PATIENCE_S, Stop
from sidecar.app.worker_environment import WORKER_VARIABLE
from sidecar.basics.build import request_path
from sidecar.basics.errors import SetupError
from sidecar.basics.listening import listening_sockets
from sidecar.basics.logger import get_logger
from sidecar.ledger.store import open_store

log = get_logger("sidecar.workers")

RESTART_S = 1.0
START_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 2.0


class Worker:
    """One child process."""

    def __init__(self, number: int, directory: Path, port: int, arguments: list[str]) -> None:
        self.number = number
        self.socket = directory / f"worker-{number}.sock"
        self.was_ready = False
        """Whether it has ever served. One that never did has said why on standard error."""
        self._port = port
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        environment = {**os.environ, WORKER_VARIABLE: f"{self.number}:{self._port}:{self.socket}"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sidecar", *self._arguments, stdin=asyncio.subprocess.PIPE, env=environment
        )

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    def tell(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Asks the worker's own admin side. Raises aiohttp.ClientError, TimeoutError: it does not answer."""
        connector = aiohttp.UnixConnector(str(self.socket))
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(f"http://worker{path}") as response,
        ):
            return response.status, await response.read()


class Supervisor:
    """Keeps ``config.listen.workers`` of them running. ``arguments``: those of the command line, for the children."""

    def __init__(self, config: Config, arguments: list[str]) -> None:
        self._config = config
        self._arguments = arguments
        self._workers: list[Worker] = []
        self._stopping = False
        self._draining = False

    async def run(self, stop: Stop, ready: Ready) -> bool:
        """Serves until ``stop``. False if a worker had to be killed or ended badly. Raises `SetupError`."""
        config = self._config
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-")))
            port = _reserve(stack, config.listen.host, config.listen.port)
            async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
                await check_ledger(config, store.client)
                self._workers = [Worker(n, directory, port, self._arguments) for n in range(config.listen.workers)]
                view = AccountsView(store.accounts)
                token = admin_token(config.admin, None)
                endpoints = AdminEndpoints(self._health, self._metrics, self._status, self._process, view, token)
                admin = AdminServer("admin", config.admin.host, config.admin.listening_port, endpoints)
                admin_port = await admin.start()
                restart_tasks = [asyncio.create_task(self._restart_when_ended(worker)) for worker in self._workers]
                try:
                    async with health_server(config, self._health, self._metrics, self._drained) as health_port:
                        await self._until_ready(restart_tasks, stop)
                        if not stop.is_set():
                            further = tuple(listener.port for listener in config.listeners)
                            ready(Ports(admin_port, port, health_port, further))
                            log.info("serving", version=__version__, request_path=request_path(), port=port,
                                     host=config.listen.host, admin_port=admin_port,
                                     workers=len(self._workers))  # fmt: skip
                        await stop.drain.wait()
                        self._begin_drain()
                        await stop.wait()
                finally:
                    clean = await self._stop_all(restart_tasks)
                    await admin.close()
                return clean

    async def _restart_when_ended(self, worker: Worker) -> int:
        while True:
            await worker.start()
            if self._stopping:
                worker.tell(signal.SIGTERM)  # told before this one existed
            code = await worker.wait()
            if self._stopping:
                return code
            if code in (1, 2) and not worker.was_ready:
                return code  # it said why; starting it again would say the same
            log.error("a worker ended and is started again", worker=worker.number, exit_code=code)
            await asyncio.sleep(RESTART_S)
            if self._stopping:
                return 0

    async def _until_ready(self, restart_tasks: list[asyncio.Task[int]], stop: asyncio.Event) -> None:
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not stop.is_set():
            if any(task.done() for task in restart_tasks):
                raise SetupError("a worker could not start; see its message above")
            if all(worker.socket.exists() for worker in self._workers):
                for worker in self._workers:
                    worker.was_ready = True
                return
            if asyncio.get_running_loop().time() > deadline:
                raise SetupError(f"the workers did not start within {START_TIMEOUT_S:g} s")
            await asyncio.sleep(0.02)

    def _begin_drain(self) -> None:
        self._draining = True
        for worker in self._workers:
            worker.tell(signal.SIGUSR1)

    async def _drained(self) -> bool:
        done = False

        async def watch() -> None:
            nonlocal done
            while not done:
                done = (await self._process())["drained"]
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        try:
            return await until_drained(self._config, lambda: self._draining, lambda: self._draining and done)
        finally:
            watching.cancel()

    async def _stop_all(self, restart_tasks: list[asyncio.Task[int]]) -> bool:
        self._stopping = True
        for worker in self._workers:
            worker.tell(signal.SIGTERM)  # a terminal has sent them SIGINT already, and a second one would kill them
        grace_s = drain_s_max(self._config) + 10
        try:
            _, late = await asyncio.wait(restart_tasks, timeout=grace_s)
        except asyncio.CancelledError:  # whoever told this process to end does not wait: neither do they
            for worker in self._workers:
                worker.tell(signal.SIGTERM)
            await asyncio.wait(restart_tasks, timeout=PATIENCE_S)
            raise
        finally:
            for worker in self._workers:
                worker.kill()
            codes = await asyncio.gather(*restart_tasks, return_exceptions=True)
        # A worker that was told to drain or to stop before it had begun to listen to signals ends by the signal.
        return not late and all(code in (0, -signal.SIGUSR1, -signal.SIGTERM) for code in codes)

    # what the admin side asks

    async def _ask_all(self, path: str) -> list[tuple[int, bytes] | None]:
        async def ask(worker: Worker) -> tuple[int, bytes] | None:
            try:
                return await worker.ask(path)
            except (aiohttp.ClientError, TimeoutError, OSError):
                return None

        return list(await asyncio.gather(*map(ask, self._workers)))

    async def _health(self) -> Health:
        if self._stopping or self._draining:
            return Health(False, "the gateway is stopping")
        answers = await self._ask_all("/readyz")
        # The port is shared: as long as one worker accepts connections and is ready, so is the pod.
        ready = [answer[1].decode().strip() for answer in answers if answer is not None and answer[0] == 200]
        if ready:
            return Health(True, next((text for text in ready if text != "ok"), ""))
        texts = [answer[1].decode().strip() for answer in answers if answer is not None]
        return Health(False, texts[0] if texts else "no worker answers")

    async def _metrics(self) -> bytes:
        answers = await self._ask_all("/metrics")
        return merge(body for answer in answers if answer is not None for status, body in [answer] if status == 200)

    async def _process(self) -> Mapping[str, Any]:
        answers = await self._ask_all("/v1/process")
        told = [orjson.loads(answer[1]) if answer is not None else {"drained": True} for answer in answers]
        document = {
            "version": __version__,
            "request_path": request_path(),
            "pid": os.getpid(),
            "ready": (await self._health()).ready,
        }
        drained = self._draining and all(each.get("drained") for each in told)  # one that is gone has nothing left
        return {**document, "draining": self._draining, "drained": drained}

    async def _status(self) -> Mapping[str, Any]:
        answers = await self._ask_all("/v1/status")
        workers = [orjson.loads(answer[1]) if answer is not None else {"ready": False} for answer in answers]
        return {**await self._process(), "workers": workers}


def _reserve(stack: contextlib.ExitStack, host: str, port: int) -> int:
    """Binds the port without listening, so that it is known and stays ours. Raises `SetupError`."""
    try:
        sockets = listening_sockets(host, port, reuse_port=True)
    except OSError as error:
        raise CannotListen(error, host, port, "listen.port") from None
    for each in sockets:
        stack.enter_context(each)
    bound: int = sockets[0].getsockname()[1]
    return bound
