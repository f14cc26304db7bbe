"""What a user is told when a command cannot start: no configuration, or a port that another process has."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sidecar.app.configuration import load_config
from tests.support.processes import running, sidecar

GIVE = "give -c FILE (or set SIDECAR_CONFIG)"
NOTHING_SET = {name: "" for name in os.environ if name.startswith("SIDECAR_")}


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def configuration(directory: Path, url: str, **sections: Any) -> str:
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "metering": {"url": "http://127.0.0.1:9"},
        "valkey": url,
        "admin": {"port": 0},
        **sections,
    }
    path = directory / "gateway.yaml"
    path.write_text(json.dumps(document))
    return str(path)


NEED_A_CONFIGURATION = (
    "run", "control", "check", "drain", "reconcile --once", "sync --once", "account list", "account show tpp",
    "account suspend tpp", "account resume tpp", "account load examples/accounts.yaml", "outbox status",
    "outbox dead-letters", "outbox audit", "catalog diff examples/catalog.yaml",
    "catalog apply --yes examples/catalog.yaml",
)  # fmt: skip


@pytest.mark.parametrize("command", NEED_A_CONFIGURATION)
def test_a_command_without_a_configuration_asks_for_one(command: str) -> None:
    ended = sidecar(*command.split(), environment=NOTHING_SET)
    assert (ended.returncode, GIVE in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_variables_alone_are_a_configuration(url: str) -> None:
    environment = {**NOTHING_SET, "SIDECAR_VALKEY": url, "SIDECAR_UPSTREAM__URL": "http://127.0.0.1:9"}
    alone = sidecar("check", "--json", environment=environment)
    findings = {each["what"]: each["ok"] for each in json.loads(alone.stdout)["findings"]}
    assert (findings["configuration"], findings["valkey"]) == (True, True)

    half = sidecar("run", environment={**NOTHING_SET, "SIDECAR_UPSTREAM__URL": "http://127.0.0.1:9"})
    assert half.returncode == 2
    assert f"{GIVE}: the SIDECAR_… variables do not set valkey" in half.stderr
    no_api = sidecar("run", environment={**NOTHING_SET, "SIDECAR_VALKEY": url})
    assert no_api.returncode == 2
    assert "upstream.url: is missing: a gateway needs it" in no_api.stderr
    assert GIVE in no_api.stderr


def test_variables_of_the_ledger_count_for_every_command(url: str) -> None:
    """A prefix that only some commands read would show an empty ledger."""
    here = {**NOTHING_SET, "SIDECAR_VALKEY": url, "SIDECAR_LEDGER__PREFIX": "elsewhere"}
    loaded = sidecar("account", "load", "examples/accounts.yaml", environment=here)
    assert loaded.returncode == 0, loaded.stderr
    assert "tpp-pro" in sidecar("account", "list", environment=here).stdout
    assert "tpp-pro" not in sidecar("account", "list", environment={**here, "SIDECAR_LEDGER__PREFIX": ""}).stdout


@pytest.mark.parametrize(
    ("command", "sections", "setting"),
    [
        ("run", lambda port: {"listen": {"host": "127.0.0.1", "port": port}}, "listen.port"),
        (
            "run",
            lambda port: {"listeners": [{"port": port, "upstream": "http://127.0.0.1:9"}]},
            "listeners[0].port",
        ),
        ("run", lambda port: {"admin": {"port": port}}, "admin.port"),
        ("run", lambda port: {"health": {"host": "127.0.0.1", "port": port}}, "health.port"),
        ("run", lambda port: {"listen": {"host": "127.0.0.1", "port": port, "workers": 2}}, "listen.port"),
        ("control", lambda port: {"admin": {"port": port}}, "admin.port"),
        (
            "control",
            lambda port: {"admin": {"port": port}, "lago": {"url": "http://127.0.0.1:9", "api_key": "k"}},
            "admin.port",
        ),
        ("control", lambda port: {"health": {"host": "127.0.0.1", "port": port}}, "health.port"),
    ],
)
def test_a_port_in_use_is_named_with_its_setting(
    command: str, sections: Any, setting: str, taken: int, tmp_path: Path, url: str
) -> None:
    given = {"listen": {"host": "127.0.0.1", "port": 0}, **sections(taken)}
    ended = sidecar(command, "-c", configuration(tmp_path, url, **given))
    assert ended.returncode == 1
    assert f"{taken} is in use" in ended.stderr
    assert setting in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("setting", ["listen", "listeners", "admin", "health", "spool"])
def test_a_gateway_that_cannot_start_leaves_no_instance_in_the_ledger(
    setting: str, taken: int, tmp_path: Path, url: str, valkey: redis.Redis
) -> None:
    """The other gateways would take it for a process that died, and say so."""
    no_directory = tmp_path / "file"
    no_directory.touch()
    sections: dict[str, Any] = {
        "listen": {"listen": {"host": "127.0.0.1", "port": taken}},
        "listeners": {"listeners": [{"port": taken, "upstream": "http://127.0.0.1:9"}]},
        "admin": {"admin": {"port": taken}},
        "health": {"health": {"host": "127.0.0.1", "port": taken}},
        "spool": {"ledger": {"on_ledger_failure": "open", "open": {"spool_directory": str(no_directory)}}},
    }
    ended = sidecar("run", "-c", configuration(tmp_path, url, **sections[setting]))
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False), ended.stderr
    assert list(valkey.scan_iter("*alive", _type="zset")) == []
    assert "Valkey lost" not in ended.stderr


@pytest.mark.parametrize("flag", ["--proxy-port", "--admin-port"])
def test_a_port_in_use_is_named_with_the_demo_s_flag(flag: str, taken: int) -> None:
    other = ({"--proxy-port", "--admin-port"} - {flag}).pop()
    ended = sidecar("demo", flag, str(taken), other, "0")
    assert ended.returncode == 1
    assert f"{taken} is in use" in ended.stderr
    assert flag in ended.stderr
    assert other not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_the_demo_does_not_take_one_port_for_both_sides(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = str(other.getsockname()[1])
    ended = sidecar("demo", "--proxy-port", free, "--admin-port", free)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert f"--admin-port: port {free} is in use" in ended.stderr


@pytest.mark.parametrize("flag", ["--port", "--health-port"])
def test_a_port_in_use_is_named_with_the_injector_s_flag(flag: str, taken: int, tmp_path: Path) -> None:
    other = ({"--port", "--health-port"} - {flag}).pop()
    ended = sidecar(
        "injector", "--host", "127.0.0.1", flag, str(taken), other, "0", "--kubernetes-version", "1.31",
        "--tls-cert-file", str(tmp_path / "tls.crt"), "--tls-key-file", str(tmp_path / "tls.key"),
    )  # fmt: skip
    assert ended.returncode == 1
    assert f"{taken} is in use" in ended.stderr
    assert flag in ended.stderr


def test_the_admin_sides_of_gateway_and_control_plane_do_not_meet_by_default(tmp_path: Path, url: str) -> None:
    """One file, one machine, both commands. What they listen on is read from the file, since another process of this
    machine may have the ports themselves."""
    file = Path(configuration(tmp_path, url, admin={}))
    assert load_config(file, {}, command="run").admin.port == 9090
    assert load_config(file, {}, command="control").admin.port == 9091
    assert load_config(file, {}).admin.port == 9090, "what drain and check look for is the gateway"
    set_by_hand = Path(configuration(tmp_path, url, admin={"port": 1234}))
    assert {load_config(set_by_hand, {}, command=each).admin.port for each in ("run", "control")} == {1234}


def test_one_file_serves_gateway_and_control_plane_at_once(tmp_path: Path, url: str) -> None:
    file = configuration(tmp_path, url)
    with running("run", "-c", file, "--json") as gateway, running("control", "-c", file, "--json") as control:
        assert gateway.ready["admin"] != control.ready["admin"]
