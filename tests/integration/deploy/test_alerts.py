"""The alert rules: they fire and do not fire as their unit tests say; each has a runbook, with commands that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sidecar.cli import build
from tests.integration.deploy.observed import DEPLOY, RULES, alerts, rules

HERE = Path(__file__).parent
UNIT_TESTS = sorted(HERE.glob("*_test.yaml"))
RUNBOOKS = DEPLOY / "runbooks.md"
BASE = "https://github.com/openova/quota-sidecar/blob/main/deploy/runbooks.md#"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lint error" not in done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_at_no_other_time() -> None:
    environment = {**os.environ, "GOGC": "400"}  # less time for some memory
    started = [
        subprocess.Popen(
            ["promtool", "test", "rules", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for path in UNIT_TESTS
    ]
    texts = [process.communicate()[0].decode() for process in started]
    assert [process.returncode for process in started] == [0] * len(UNIT_TESTS), "\n".join(texts)


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    fired = set(re.findall(r'alertname="(\w+)", severity="(\w+)"', "".join(map(Path.read_text, UNIT_TESTS))))
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}


def test_every_unit_test_has_a_time_at_which_less_fires() -> None:
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            numbers = {len(each["exp_samples"]) for each in test["promql_expr_test"]}
            assert 0 in numbers or len(numbers) > 1 or test["interval"] == "10m", test["name"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_how_bad_it_is_what_is_the_matter_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "{{ $labels." in annotations["summary"], "says where"
    assert len(annotations["description"]) > 40
    assert annotations["runbook_url"] == BASE + str(rule["alert"]).lower()


def sections() -> dict[str, str]:
    """Text of the runbook by alert."""
    pieces = re.split(r"^### (\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_runbooks_and_alerts_are_the_same_ones() -> None:
    assert set(sections()) == {rule["alert"] for rule in alerts()}


def test_a_runbook_says_what_a_tpp_notices_and_what_not_to_do_or_look_at_first() -> None:
    short = {name for name, text in sections().items() if len(text.split()) < 60 or "TPP" not in text}
    assert short == set()


def test_runbooks_refer_to_alerts_that_exist() -> None:
    named = set(re.findall(r"\bQuota[A-Z]\w+", RUNBOOKS.read_text()))
    assert named - set(sections()) == set()


COMMANDS = sorted(
    {
        " ".join(each.split())
        for each in re.findall(r"(?:`|-- )(sidecar [a-z][^`#]*?)(?:`|  +#|\n```)", RUNBOOKS.read_text(), re.DOTALL)
    }
)


@pytest.fixture(scope="module")
def command_line() -> Any:
    """The whole of it, as click has it."""
    return typer.main.get_command(build([]))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_runbooks_exists_with_its_options(line: str, command_line: Any) -> None:
    command, words = command_line, line.split()[1:]
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    values = 0
    for word in words:
        if word.startswith("-"):
            assert word in options
            values += not options[word].is_flag
    arguments = sum(parameter.param_type_name == "argument" for parameter in command.params)
    assert sum(not word.startswith("-") for word in words) - values <= arguments


def test_commands_of_the_runbooks_are_found_at_all() -> None:
    assert {"sidecar outbox status", "sidecar account show TPP"} <= set(COMMANDS)


def test_records_are_named_by_their_labels_metric_and_window() -> None:
    names = [rule["record"] for rule in rules() if "record" in rule]
    assert [name for name in names if not re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", name)] == []
    assert len(set(names)) == len(names)
