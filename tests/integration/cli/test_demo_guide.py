"""What the demo prints is pasted into a real shell, as a new user does: whatever the order, each line works."""

from __future__ import annotations

import http.client
import json
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

TIMEOUT_S = 60.0
ACCOUNTS = "/open-banking/v3.1/aisp/accounts"
SHELL = shutil.which("bash")
TOOLS = SHELL is not None and shutil.which("curl") is not None


@dataclass
class Guide:
    """A running demo. ``places`` are its addresses and keys by the name that the guide gives them."""

    text: list[str]
    said: queue.Queue[str]

    @property
    def lines(self) -> dict[str, str]:
        """Commands by what the guide says that they are for."""
        pairs = zip(self.text, self.text[1:], strict=False)
        return {about[4:]: command.strip() for about, command in pairs if about.startswith("  # ")}

    def place(self, name: str) -> str:
        (found,) = re.findall(rf"^  {name} +(?:X-API-Key: )?(\S+)$", "\n".join(self.text), re.MULTILINE)
        return str(found)

    def line(self, words: str) -> str:
        (found,) = [command for about, command in self.lines.items() if words in about]
        return found

    def get(self, place: str, path: str, **headers: str) -> tuple[int, Any]:
        parts = urlsplit(self.place(place))
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def call(self, account: str) -> int:
        return self.get("gateway", ACCOUNTS, X_API_Key=self.place(account))[0]

    def account(self, account: str) -> Any:
        return self.get("admin", f"/v1/accounts/{account}")[1]


@contextmanager
def demo() -> Iterator[Guide]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo", "--proxy-port", "0", "--admin-port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    text: list[str] = []
    said: queue.Queue[str] = queue.Queue()
    try:
        for line in process.stdout:
            text.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                break
        else:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read())
        threading.Thread(target=lambda: [said.put(line) for line in process.stdout or ()], daemon=True).start()
        yield Guide(text, said)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def paste(*commands: str) -> str:
    """What an interactive bash prints when the commands are pasted into it together."""
    assert SHELL is not None
    pasted = "".join(f"{command}\n" for command in commands)
    done = subprocess.run(
        [SHELL, "--norc", "--noprofile", "-i"], input=pasted, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    for complaint in ("command not found", "syntax error", "event not found", "unexpected", "curl: ("):
        assert complaint not in done.stderr, done.stderr
    return done.stdout


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def effects(guide: Guide) -> dict[str, Callable[[str], None]]:
    """What has to be so once a line was pasted, by words of what it is for; given what the shell printed."""

    def called(printed: str) -> None:
        assert re.search(r"^HTTP/1\.1 (200|402) ", printed, re.MULTILINE)

    def eleven(printed: str) -> None:
        assert set(printed.split()) <= {"200", "402"}
        assert len(printed.split()) == 11

    def one_body(printed: str) -> None:
        document = json.loads(printed)
        assert "Data" in document or document["status"] == 402

    def counted(printed: str) -> None:
        rows = {row["subject"]: row["value"] for row in json.loads(printed)["data"]}
        (used,) = [each["settled"] for each in guide.account("tpp-prepaid")["metrics"] if each["metric"] == "api_calls"]
        assert rows.get("tpp-prepaid", 0) == used, "what was charged when the line was pasted has been counted"

    def topped_up(printed: str) -> None:
        assert json.loads(printed)["wallet_transactions"][0]["credit_amount"].startswith("5.0")
        eventually(lambda: guide.call("tpp-prepaid") == 200)

    def suspended(printed: str) -> None:
        assert json.loads(printed)["customer"]["external_id"] == "tpp-postpaid"
        eventually(lambda: guide.account("tpp-postpaid")["status"] == "suspended")
        eventually(lambda: guide.call("tpp-postpaid") == 403)

    def resumed(printed: str) -> None:
        assert json.loads(printed)["customer"]["external_id"] == "tpp-postpaid"
        eventually(lambda: guide.account("tpp-postpaid")["status"] == "active")
        eventually(lambda: guide.call("tpp-postpaid") == 200)

    def upgraded(printed: str) -> None:
        assert json.loads(printed)["subscription"]["plan_code"] == "api_pro"

        def included() -> bool:
            (calls,) = [m for m in guide.account("tpp-postpaid")["metrics"] if m["metric"] == "api_calls"]
            return calls["model"] == "graduated"

        eventually(included)

    def terminated(printed: str) -> None:
        assert json.loads(printed)["subscription"]["status"] == "terminated"
        eventually(lambda: guide.call("tpp-overage") == 403)

    def shown(printed: str) -> None:
        assert json.loads(printed)["id"] == "tpp-prepaid"

    return {
        "make a call": called,
        "while the wallet has 1.00, the credit is enough for ten": eleven,
        "how much is missing": one_body,
        "OpenMeter has counted": counted,
        "top up": topped_up,
        "suspend tpp-postpaid": suspended,
        "end the suspension": resumed,
        "upgrade": upgraded,
        "terminate": terminated,
        "see the account": shown,
    }


if TOOLS:

    @pytest.fixture(scope="module")
    def guide() -> Iterator[Guide]:
        with demo() as started:
            yield started

    def test_there_is_a_line_for_whatever_one_wants_to_see(guide: Guide) -> None:
        assert len(guide.lines) == len(effects(guide))
        for words in effects(guide):
            assert guide.line(words)

    def test_every_line_works_alone_in_any_order(guide: Guide) -> None:
        order = list(effects(guide))
        random.shuffle(order)
        print("order:", order)
        for words in order:
            effects(guide)[words](paste(guide.line(words)))

    def test_what_is_counted_is_told_once_openmeter_has_it(guide: Guide) -> None:
        paste(guide.line("make a call"))
        until = time.monotonic() + TIMEOUT_S

        def calls() -> Any:
            (found,) = [each for each in guide.account("tpp-prepaid")["metrics"] if each["metric"] == "api_calls"]
            return found

        eventually(lambda: calls()["held"] == 0)  # a call is settled after its answer
        used = calls()["settled"]
        while f"tpp-prepaid {used}" not in guide.said.get(timeout=until - time.monotonic()):
            pass

    def test_all_lines_work_pasted_at_once() -> None:
        with demo() as fresh:
            order = [words for words in effects(fresh) if words != "end the suspension"]
            random.shuffle(order)
            print("order:", order)
            printed = paste(*(f"echo '=== {words}'\n{fresh.line(words)}" for words in order))
            parts = dict(re.findall(r"^=== (.*)\n((?:(?!=== ).*\n)*)", printed, re.MULTILINE))
            assert list(parts) == order
            for words in order:
                if words != "OpenMeter has counted":  # calls that were pasted after it have been charged since
                    effects(fresh)[words](parts[words])

    def test_the_whole_guide_can_be_pasted_with_its_remarks() -> None:
        with demo() as fresh:
            remarks_and_commands = [line for pair in fresh.lines.items() for line in (f"  # {pair[0]}", f"  {pair[1]}")]
            paste(*remarks_and_commands)
            eventually(lambda: fresh.call("tpp-overage") == 403)
