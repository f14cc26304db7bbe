"""The commands on a ledger of their own: what they print, how they fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import redis

from sidecar.basics.build import describe
from sidecar.ledger.keys import Keys
from tests.support.processes import running, sidecar
from tests.support.valkey_process import valkey_process

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "accounts.yaml"


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


def gateway(tmp_path: Path, url: str, **sections: object) -> str:
    """A configuration file with an upstream that is not there."""
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "valkey": url,
        "admin": {"port": 0},
        **sections,
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_the_version_is_told(asked: str) -> None:
    told = sidecar(asked)
    assert (told.returncode, told.stdout) == (0, f"{describe()}\n")


def test_accounts_are_loaded_listed_and_shown(url: str) -> None:
    loaded = sidecar("account", "load", str(EXAMPLE), "--valkey", url, "--json")
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == {"loaded": {"tpp-12345": 1, "tpp-pro": 1, "tpp-trusted": 1}, "failed": {}}

    listed = sidecar("account", "list", "--valkey", url)
    rows = [line.replace("│", " ").split() for line in listed.stdout.splitlines() if "tpp-" in line]
    assert rows == [
        ["tpp-12345", "prepaid", "active", "105.00", "GBP"],
        ["tpp-pro", "overage", "active", "500.00", "USD"],
        ["tpp-trusted", "postpaid", "active", "10,000.00", "EUR"],
    ]
    assert listed.stdout.endswith("3 accounts\n")
    document = json.loads(sidecar("account", "list", "--valkey", url, "--limit", "2", "--json").stdout)
    assert [(each["id"], each["status"], each["available"]) for each in document["accounts"]] == [
        ("tpp-12345", "active", "105.00"), ("tpp-pro", "active", "500.000"),
    ]  # fmt: skip
    assert document["next_after"] == "tpp-pro"

    shown = json.loads(sidecar("account", "show", "tpp-12345", "--valkey", url, "--json").stdout)
    assert (shown["mode"], shown["available"], shown["currency"]) == ("prepaid", "105.00", "GBP")


@pytest.mark.parametrize(
    "arguments", [("load", str(EXAMPLE)), ("list",), ("show", "tpp-1"), ("suspend", "tpp-1")], ids=lambda each: each[0]
)
def test_a_ledger_of_the_former_release_is_named_as_such(
    arguments: tuple[str, ...], url: str, valkey: redis.Redis
) -> None:
    valkey.zadd("qs:{p00}:accounts", {"tpp-1": 0})

    ended = sidecar("account", *arguments, "--valkey", url)

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the ledger with the prefix 'qs' has format 1 (release 0.2)")
    assert ended.stderr.endswith("then run: sidecar ledger migrate\n")
    assert valkey.keys() == [b"qs:{p00}:accounts"]


def test_load_and_list_show_what_an_account_can_still_spend(url: str) -> None:
    def table(*arguments: str) -> list[list[str]]:
        printed = sidecar("account", *arguments, "--valkey", url).stdout
        return [re.sub("[│┃]", " ", line).split() for line in printed.splitlines()]

    for printed in (table("load", str(EXAMPLE)), table("list")):
        assert any(row[3:6] == ["can", "still", "spend"] for row in printed)
        assert any(row[:5] == ["tpp-12345", "prepaid", "active", "105.00", "GBP"] for row in printed)


def test_an_account_is_shown_to_people_in_words_dates_and_money(url: str) -> None:
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    sidecar("account", "suspend", "tpp-12345", "--valkey", url)
    text = " ".join(sidecar("account", "show", "tpp-12345", "--valkey", url).stdout.split())
    for words in (
        "status suspended", "mode prepaid (", "can still spend 105.00 GBP", "- overdraft 5.00 GBP",
        "limits 50 requests per second, bursts of 100 requests, 100,000 requests per day",
        "0.01 GBP each", "1.00 GBP per 10 after 5 free", "API keys 1",
    ):  # fmt: skip
        assert words in text
    assert re.search(r"period \d{1,2} [A-Z][a-z]+ 20\d\d, \d\d:\d\d UTC to \d{1,2} [A-Z]", text)
    for code in ("_ms", "{", "None", "True", "False", "digits"):
        assert code not in text
    other = " ".join(sidecar("account", "show", "tpp-pro", "--valkey", url).stdout.split())
    assert "limits none" in other
    assert "graduated (to 10000: 0.00 USD, beyond: 0.001 USD)" in other


def test_one_account_is_one_account(url: str, tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text(
        "accounts:\n  - {id: only, mode: postpaid, currency: GBP, prices: {api_calls: {model: standard, amount: 1}},"
        " period: {every: month}}\n"
    )
    loaded = sidecar("account", "load", str(file), "--valkey", url)
    assert loaded.stdout.endswith("1 account loaded\n"), loaded.stderr
    assert sidecar("account", "list", "--valkey", url).stdout.endswith("1 account\n")
    assert "; 1 account" in sidecar("check", "-c", gateway(tmp_path, url)).stdout


def test_loading_the_same_file_again_changes_nothing_but_the_version(url: str) -> None:
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    before = json.loads(sidecar("account", "show", "tpp-pro", "--valkey", url, "--json").stdout)
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    after = json.loads(sidecar("account", "show", "tpp-pro", "--valkey", url, "--json").stdout)
    assert after == {**before, "version": 2}


def test_a_suspended_account_says_so_until_it_is_resumed(url: str) -> None:
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    for verb, status in (("suspend", "suspended"), ("resume", "active")):
        assert sidecar("account", verb, "tpp-pro", "--valkey", url).returncode == 0
        assert json.loads(sidecar("account", "show", "tpp-pro", "--valkey", url, "--json").stdout)["status"] == status


MISTAKES = {
    "an account that is not there": (("account", "show", "nobody"), 1, "there is no account 'nobody'"),
    "suspending one that is not there": (("account", "suspend", "nobody"), 1, "nobody"),
    "a file that is not there": (("account", "load", "/nowhere.yaml"), 2, "/nowhere.yaml"),
    "a dead letter's id that is none": (("outbox", "dead-letters", "--requeue", "x"), 2, "'x'"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_a_message_and_an_exit_code_not_a_traceback(
    arguments: tuple[str, ...], code: int, words: str, url: str
) -> None:
    ended = sidecar(*arguments, "--valkey", url)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


UNUSABLE = {
    "no ledger named": ((), 2, "give -c FILE (or set SIDECAR_CONFIG), or --valkey URL"),
    "a URL that is none": (("--valkey", "http://x"), 2, "--valkey"),
    "a Valkey that is not there": (("--valkey", "valkey://127.0.0.1:9"), 1, "reached"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_ledger_that_cannot_be_used_is_named(arguments: tuple[str, ...], code: int, words: str) -> None:
    ended = sidecar("account", "list", *arguments, environment={"SIDECAR_VALKEY": ""})
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_file_may_be_named_by_a_variable_which_an_option_overrides(tmp_path: Path, url: str) -> None:
    """As in containers, where `kubectl exec` runs commands without `-c`."""
    named = {"SIDECAR_CONFIG": gateway(tmp_path, url, ledger={"prefix": "other"})}
    assert sidecar("account", "load", str(EXAMPLE), environment=named).returncode == 0
    assert sidecar("account", "list", environment=named).stdout.endswith("3 accounts\n")
    elsewhere = sidecar("account", "list", "--valkey", url, environment=named)
    assert elsewhere.stdout == "0 accounts\n", "another ledger's prefix"
    checked = sidecar("check", "--json", environment={**named, "SIDECAR_VALKEY": "valkey://127.0.0.1:9"})
    findings = {each["what"]: each["ok"] for each in json.loads(checked.stdout)["findings"]}
    assert (findings["configuration"], findings["valkey"]) == (True, False), "variables override the file"

    (tmp_path / "wrong").mkdir()
    wrong = {"SIDECAR_CONFIG": gateway(tmp_path / "wrong", "valkey://127.0.0.1:9")}
    assert sidecar("account", "list", "-c", named["SIDECAR_CONFIG"], environment=wrong).returncode == 0
    unset = sidecar("account", "list", environment={"SIDECAR_CONFIG": "", "SIDECAR_VALKEY": ""})
    assert (unset.returncode, "give -c FILE (or set SIDECAR_CONFIG), or --valkey URL" in unset.stderr) == (2, True)
    missing = sidecar("run", environment={"SIDECAR_CONFIG": str(tmp_path / "nowhere.yaml")})
    assert (missing.returncode, f"{tmp_path}/nowhere.yaml" in missing.stderr) == (2, True)


def test_the_outbox_of_an_empty_ledger_is_empty(url: str) -> None:
    status = json.loads(sidecar("outbox", "status", "--valkey", url, "--json").stdout)
    assert (status["entries"], status["dead_letters"], status["publishers"]) == (0, 0, [])
    assert "0 entries" in sidecar("outbox", "status", "--valkey", url).stdout
    assert "no dead letters" in sidecar("outbox", "dead-letters", "--valkey", url).stdout


def test_an_account_that_cannot_be_read_is_named_and_others_are_loaded(url: str, valkey: redis.Redis) -> None:
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    valkey.set(Keys().state("tpp-pro"), b"junk")

    shown = sidecar("account", "show", "tpp-pro", "--valkey", url)
    assert (shown.returncode, "Traceback" in shown.stderr) == (1, False), shown.stderr
    assert "account 'tpp-pro' cannot be read from the ledger" in shown.stderr
    loaded = sidecar("account", "load", str(EXAMPLE), "--valkey", url, "--json")
    assert loaded.returncode == 1
    found = json.loads(loaded.stdout)
    assert found["loaded"] == {"tpp-12345": 2, "tpp-trusted": 2}
    assert list(found["failed"]) == ["tpp-pro"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min-replicas-to-write": "1"}, "min-replicas-to-write"),
        ({"replicaof": "127.0.0.1 9"}, "replica"),
        ({"maxmemory": "1", "maxmemory-policy": "noeviction"}, "maxmemory"),
    ],
)
def test_check_finds_a_server_that_takes_no_writes(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    with valkey_process(tmp_path / "valkey", **settings) as server:
        config = gateway(tmp_path, f"valkey://127.0.0.1:{server.port}")
        ended = sidecar("check", "-c", config, "--json")
    found = {each["what"]: each for each in json.loads(ended.stdout)["findings"]}
    assert (ended.returncode, found["valkey"]["ok"], found["valkey writes"]["ok"]) == (1, True, False)
    assert words in found["valkey writes"]["detail"]


def test_check_reports_what_it_cannot_reach(tmp_path: Path, url: str) -> None:
    ended = sidecar("check", "-c", gateway(tmp_path, url), "--json")
    assert ended.returncode == 1
    findings = {each["what"]: each["ok"] for each in json.loads(ended.stdout)["findings"]}
    assert findings["valkey"] is True
    assert findings["upstream"] is False
    assert findings["openmeter"] is None


def test_check_is_content_with_the_demo(tmp_path: Path) -> None:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json") as demo:
        config = gateway(
            tmp_path, demo.ready["valkey"],
            upstream={"url": demo.ready["upstream"]}, metering={"url": demo.ready["openmeter"]},
            lago={"url": demo.ready["lago"], "api_key_file": str(tmp_path / "lago-api-key")},
        )  # fmt: skip
        ended = sidecar("check", "-c", config)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "3 accounts" in ended.stdout
        assert f"{tmp_path}/lago-api-key is not there; a control plane needs it, a gateway does not" in ended.stdout

        (tmp_path / "lago-api-key").write_text(demo.ready["lago_api_key"])
        ended = sidecar("check", "-c", config)
        assert (ended.returncode, "3 customers" in ended.stdout) == (0, True), ended.stdout + ended.stderr


def test_check_of_a_control_plane_fails_without_its_key_of_lago(tmp_path: Path, url: str) -> None:
    lago = {"url": "http://127.0.0.1:9", "api_key_file": str(tmp_path / "lago-api-key")}
    config = gateway(tmp_path, url, upstream={}, metering={"url": "http://127.0.0.1:9"}, lago=lago)
    ended = sidecar("check", "-c", config, "--json")
    found = {each["what"]: each for each in json.loads(ended.stdout)["findings"]}
    assert (ended.returncode, found["lago"]["ok"]) == (1, False)
    assert "lago-api-key: No such file" in found["lago"]["detail"]


def test_a_wrong_configuration_is_told_by_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("upstream:\n  url: http://api\n  conect_timeout_ms: 5\nvalkey: valkey://v\n")
    ended = sidecar("run", "-c", str(path))
    assert ended.returncode == 2
    assert f"{path}:3" in ended.stderr
    assert "connect_timeout_ms" in ended.stderr


def test_drain_says_what_it_did(tmp_path: Path, url: str) -> None:
    config = gateway(tmp_path, url)
    with running("run", "-c", config, "--json") as started:
        here = {"SIDECAR_ADMIN__PORT": started.ready["admin"].rpartition(":")[2]}
        pid = started.process.pid
        begun = sidecar("drain", "-c", config, "--no-wait", environment=here)
        assert (begun.returncode, begun.stdout) == (0, f"The gateway (process {pid}) is draining.\n")
        done = sidecar("drain", "-c", config, environment=here)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            f"The gateway (process {pid}) has drained. It accepts no connections, and ends on SIGTERM.\n"
        )
    gone = sidecar("drain", "-c", config, environment=here)
    assert gone.returncode == 1
    assert "no gateway answers at http://127.0.0.1:" in gone.stderr
    assert "connection refused" in gone.stderr


def test_control_says_what_file_is_missing_and_ends(tmp_path: Path, url: str) -> None:
    metering = {"url": "http://127.0.0.1:9", "token_file": str(tmp_path / "nowhere")}
    ended = sidecar("control", "-c", gateway(tmp_path, url, metering=metering))
    assert ended.returncode == 1
    assert "nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr


COMMANDS = [
    "demo", "run", "control", "check", "account load", "account list", "account show", "account suspend",
    "account resume", "outbox status", "outbox dead-letters", "outbox audit", "catalog diff", "catalog apply",
    "reconcile", "sync", "drain", "redirect", "inject", "injector", "version",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    ended = sidecar(*command.split(), "--help")
    assert ended.returncode == 0
    assert f"Example: sidecar {command}" in " ".join(ended.stdout.split())


def test_what_an_operator_changes_needs_a_reason_and_is_in_the_audit_log(url: str) -> None:
    sidecar("account", "load", str(EXAMPLE), "--valkey", url)
    where = "--valkey", url

    assert sidecar("account", "close", "tpp-pro", *where).returncode == 2
    assert sidecar("account", "close", "tpp-pro", "--reason", " ", *where).returncode == 2
    adjusted = sidecar("account", "adjust", "tpp-12345", "--units", "7", "--reason", "ticket 4711", *where)
    assert re.fullmatch(r"tpp-12345: 0 settled units of api_calls are now 7 \(\S+\)\n", adjusted.stdout), adjusted
    given = sidecar("account", "adjust", "tpp-12345", "--funds=-5", "--reason", "a mistake", *where)
    assert re.match(r"tpp-12345: \S+ GBP available are now \S+\n", given.stdout), given
    assert sidecar("account", "close", "tpp-pro", "--reason", "contract ended", *where).returncode == 0
    deleted = sidecar("account", "delete", "tpp-pro", "--reason", "contract ended", "--yes", *where)
    assert deleted.stdout == "tpp-pro is deleted\n", deleted.stderr

    lines = sidecar("audit", "log", *where).stdout.splitlines()
    assert [line.split("  ")[2].strip() for line in lines[:4]] == [
        "account delete tpp-pro", "account close tpp-pro", "account adjust tpp-12345", "account adjust tpp-12345",
    ]  # fmt: skip
    assert all(line.endswith("(contract ended)") for line in lines[:2])
    document = json.loads(sidecar("audit", "log", "--json", "--account", "tpp-12345", *where).stdout)
    assert [line["what"] for line in document] == ["account adjust", "account adjust", "account load"]
    assert document[1]["after"]["settled"] == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--units", "1", "--funds", "1"), "give either --units or --funds"),
        ((), "give either --units or --funds"),
        (("--units", "0"), "should not be 0"),
        (("--funds", "much"), "should be an amount like 12.50"),
        (("--funds", "NaN"), "should be an amount like 12.50"),
    ],
)
def test_an_adjustment_that_is_none_is_refused(url: str, arguments: tuple[str, ...], words: str) -> None:
    ended = sidecar("account", "adjust", "tpp-1", "--reason", "w", *arguments, "--valkey", url)
    assert ended.returncode == 2
    assert words in ended.stderr
