"""`sidecar route` explains what the gateway would do with a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sidecar.cli import build

EXAMPLES = Path(__file__).parents[3] / "examples"
TRANSACTIONS = "/open-banking/v3.1/aisp/accounts/22289/transactions"


def run(*words: str, config: Path | str = EXAMPLES / "gateway.yaml") -> Result:
    arguments = ["route", *words, "-c", str(config)]
    return CliRunner().invoke(build(arguments), arguments, env={"COLUMNS": "200"})


def explained(*words: str, **options: Any) -> dict[str, Any]:
    found = json.loads(run(*words, "--json", **options).stdout)
    assert isinstance(found, dict)
    return found


def config(folder: Path, **sections: Any) -> Path:
    file = folder / "gateway.yaml"
    file.write_text(json.dumps({"upstream": {"url": "http://127.0.0.1:9"}, "valkey": "valkey://h", **sections}))
    return file


def test_a_route_is_shown_with_its_cost_and_why_no_other_decides() -> None:
    shown = run("GET", f"{TRANSACTIONS}?from=1")
    assert shown.exit_code == 0
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    for line in (
        f"request GET {TRANSACTIONS}",
        "route /open-banking/v3.1/aisp/accounts/{AccountId}/transactions (routes[1])",
        "metric api_calls",
        "units 2",
        "price 2 units of api_calls, at the price of the account's plan",
        "statuses 101, 200-399",
        "limits limits.target_bytes_max: 8192",
        f"variants exact: {TRANSACTIONS} -> routes[1], 2 api_calls (decides)",
        "others routes[0] /open-banking/health: segment 2 is health, the path has v3.1",
        "routes[2] /open-banking/v3.1/aisp/**: routes[1] matches first",
        "routes[3] /open-banking/v3.1/pisp/**: segment 3 is pisp, the path has aisp",
    ):
        assert line in lines, line


def test_a_variant_that_is_dearer_decides() -> None:
    found = explained("GET", TRANSACTIONS.replace("transactions", "Transactions/"))
    assert (found["setting"], found["units"], found["refused"]) == ("routes[1]", 2, 0)
    assert [each["setting"] for each in found["variants"] if each["charged"]] == ["routes[1]"]
    assert found["variants"][0]["how"] == "exact"
    assert found["variants"][0]["setting"] == "routes[2]"
    whys = {each["setting"]: each["why"] for each in found["others"]}
    assert whys["routes[2]"] == "matches the path as spelled, but routes[1] decides"


def test_prices_and_rate_limits_come_from_an_accounts_file() -> None:
    prices = explained("GET", TRANSACTIONS, "--accounts", str(EXAMPLES / "accounts.yaml"))["prices"]
    assert prices[0] == "tpp-12345: 2 x 0.01 GBP each, at most 50 a second and 100000 a day"
    payments = explained("POST", "/open-banking/v3.1/pisp/x", "--accounts", str(EXAMPLES / "accounts.yaml"))["prices"]
    assert payments[1] == "tpp-pro: no price: 403"


def test_a_method_that_no_route_has_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    file = config(tmp_path, routes=[{"path": "/a", "methods": ["GET"]}], default_route="deny")
    shown = run("PUT", "/a", config=file)
    assert shown.exit_code == 1
    assert "405: the path has other methods: GET, HEAD" in shown.stdout
    assert "routes[0] /a: is for GET" in shown.stdout
    assert run("GET", "/b", config=file).exit_code == 1
    assert explained("GET", "/b", config=file)["refused"] == 404


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (("get", "/x"), 400, "The method is not in upper case."),
        (("PURGE", "/x"), 501, "The method is not implemented."),
        (("GET", "/a/../b"), 400, "The path has an empty segment, a dot segment or a backslash."),
        (("GET", "/a%2Fb"), 400, "The path has an escaped slash."),
        (("GET", "/a b"), 400, "The request line is malformed."),
        (("GET", TRANSACTIONS, "-H", "X-HTTP-Method-Override: POST"), 400,
         "A header field names another method than the request line."),
        (("GET", TRANSACTIONS, "-H", "x_http_method: POST"), 400,
         "A header field's name can be mistaken for x-http-method."),
    ],
)  # fmt: skip
def test_what_the_gateway_refuses_is_refused_with_its_words(words: tuple[str, ...], status: int, reason: str) -> None:
    found = explained(*words)
    assert (found["refused"], found["reason"]) == (status, reason)
    assert run(*words).exit_code == 1


def test_readings_with_different_metrics_are_shown(tmp_path: Path) -> None:
    file = config(tmp_path, routes=[{"path": "/pisp/**", "metric": "payments"}])
    found = explained("GET", "/PISP/x", config=file)
    assert found["refused"] == 400
    assert {each["cost"] for each in found["variants"]} == {"1 api_calls", "1 payments"}
    weighted = config(
        tmp_path, routes=[{"path": "/pisp/**", "metric": "payments"}], metric_weights={"payments": 9, "api_calls": 1}
    )
    assert explained("GET", "/PISP/x", config=weighted)["metric"] == "payments"


def test_a_preflight_is_free_where_its_route_says_so(tmp_path: Path) -> None:
    file = config(tmp_path, routes=[{"path": "/a", "methods": ["POST"], "cors": "pass"}], default_route="deny")
    fields = ("-H", "Origin: https://tpp.example", "-H", "Access-Control-Request-Method: POST")
    found = explained("OPTIONS", "/a", *fields, config=file)
    assert (found["free"], found["setting"], found["refused"]) == (True, "routes[0]", 0)
    assert explained("OPTIONS", "/a", config=file)["refused"] == 405


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("GET", "accounts"), "PATH 'accounts': should begin with /"),
        (("G T", "/a"), "METHOD 'G T': should be a method such as GET"),
        (("GET", "/a", "-H", "X-HTTP-Method"), "--header 'X-HTTP-Method': should be 'Name: value'"),
        (("GET", "/a\r\nX: y"), "should begin with /"),
    ],
)
def test_a_misused_command_names_the_argument(words: tuple[str, ...], message: str) -> None:
    shown = run(*words)
    assert shown.exit_code == 2
    assert message in shown.stderr


@pytest.mark.parametrize("free", [True, False])
def test_a_route_of_free_paths_is_named_by_its_setting(tmp_path: Path, free: bool) -> None:
    file = config(tmp_path, free_paths=["/healthz"], routes=[{"path": "/a"}])
    found = explained("GET", "/healthz" if free else "/a", config=file)
    assert (found["setting"], found["free"]) == (("free_paths[0]", True) if free else ("routes[0]", False))
