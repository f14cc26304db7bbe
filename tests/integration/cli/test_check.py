"""``sidecar check`` finds what would make a gateway refuse, or believe, whom it should not."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.processes import sidecar

EXAMPLE = Path(__file__).parents[3] / "examples" / "accounts.yaml"
KEY = {  # RFC 7517 appendix A.1
    "kty": "EC", "crv": "P-256", "kid": "1",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
}  # fmt: skip
KEYS = json.dumps({"keys": [KEY]}).encode()
ISSUER = {"type": "jwt", "issuer": "https://issuer.example", "audience": None, "jwks_allow_http": True}


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


@pytest.fixture
def issuer() -> Iterator[str]:
    """An issuer whose key set is at /keys and nothing anywhere else."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/keys"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(KEYS) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(KEYS)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def checked(tmp_path: Path, url: str, **sections: Any) -> dict[str, tuple[bool | None, str]]:
    """Findings by what they are about."""
    document = {"upstream": {"url": "http://127.0.0.1:9"}, "valkey": url, "admin": {"port": 0}, **sections}
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps(document))
    ended = sidecar("check", "-c", str(file), "--json")
    assert "Traceback" not in ended.stderr
    return {each["what"]: (each["ok"], each["detail"]) for each in json.loads(ended.stdout)["findings"]}


def test_an_address_that_refuses_is_named_with_its_setting(tmp_path: Path, url: str) -> None:
    lago = {"url": "http://127.0.0.1:9", "api_key": "key", "attempts_max": 1}
    found = checked(
        tmp_path, "valkey://127.0.0.1:9", metering={"url": "http://127.0.0.1:9"}, lago=lago,
        listeners=[{"port": 0, "upstream": "unix+http:///nowhere.sock"}],
    )  # fmt: skip
    assert found["valkey"] == (False, "127.0.0.1:9: connection refused")
    assert found["upstream"] == (False, "listeners[0].upstream: /nowhere.sock: no such file or directory")
    refused = "OpenMeter cannot be reached: 127.0.0.1:9: connection refused"
    assert found["openmeter"] == (False, f"metering.url: http://127.0.0.1:9: {refused}")
    assert found["lago"][0] is False
    assert "127.0.0.1:9: connection refused" in found["lago"][1]
    alone = checked(tmp_path, url)
    assert alone["upstream"] == (False, "upstream.url: 127.0.0.1:9: connection refused")


@pytest.mark.parametrize(
    ("path", "ok", "words"),
    [("/keys", True, "has 1 key"), ("/elsewhere", False, "it answered 404")],
)
def test_the_keys_of_an_issuer_are_fetched(
    path: str, ok: bool, words: str, issuer: str, tmp_path: Path, url: str
) -> None:
    found = checked(tmp_path, url, identity=[{**ISSUER, "jwks_url": issuer + path}])
    assert found["identity jwt"][0] is ok
    assert words in found["identity jwt"][1]


def test_an_issuer_that_cannot_be_reached_is_found(tmp_path: Path, url: str) -> None:
    found = checked(tmp_path, url, identity=[{"type": "api_key"}, {**ISSUER, "jwks_url": "http://127.0.0.1:9/keys"}])
    assert found["identity jwt"] == (
        False,
        "identity[1].jwks_url: http://127.0.0.1:9/keys: it cannot be read: 127.0.0.1:9: connection refused",
    )


def test_a_metric_that_no_account_has_a_price_for_is_found_with_the_one_that_was_meant(
    tmp_path: Path, url: str
) -> None:
    loaded = sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    assert loaded.returncode == 0, loaded.stderr
    routes = [
        {"path": "/a", "metric": "payments"},
        {"path": "/b", "metric": "api_cals"},
        {"path": "/c", "metric": "unlike_any"},
        {"path": "/d", "free": True},
    ]
    found = checked(tmp_path, url, routes=routes, default_route="deny")
    refuses = "no account has a price for {}; the gateway refuses such calls with 403"
    assert found["metric api_cals"] == (
        False, f"routes[1].metric: {refuses.format('api_cals')}; did you mean api_calls?"
    )  # fmt: skip
    assert found["metric unlike_any"] == (None, f"routes[2].metric: {refuses.format('unlike_any')}")
    assert "metric payments" not in found
    assert not [each for each in checked(tmp_path, url) if each.startswith("metric ")], "the default route is api_calls"


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_trust_in_everybody_is_a_warning_where_no_header_says_who_calls(network: str, tmp_path: Path, url: str) -> None:
    found = checked(tmp_path, url, trusted_peers=["10.0.0.0/8", network])
    assert found["trusted_peers[1]"][0] is None
    assert network in found["trusted_peers[1]"][1]


def test_a_configuration_is_reported_for_people_with_a_word_for_each_finding(tmp_path: Path, url: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"upstream": {"url": "http://127.0.0.1:9"}, "valkey": url}))
    ended = sidecar("check", "-c", str(file))
    assert ended.returncode == 1
    words = {line.split()[0] for line in ended.stdout.splitlines()}
    assert words == {"ok", "warning", "failed"}
    assert "0 accounts" in ended.stdout
