"""Files that are no manifests, and the command that reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.manifests import inject_text
from tests.support.processes import sidecar

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - {name: a, image: a, ports: [{name: http, containerPort: 80}]}
"""
NO_PORT = POD.replace(", ports: [{name: http, containerPort: 80}]", "")
LAUGHS = "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n" + "".join(
    f"{chr(c)}: &{chr(c)} [{', '.join(['*' + chr(c - 1)] * 9)}]\n" for c in range(ord("c"), ord("k"))
)
UNREADABLE = {
    "a key twice": (POD + "kind: Pod\n", "file.yaml: document 1: line 7 of it, column 1: found duplicate key"),
    "a key twice in JSON": ('{"kind": "a", "kind": "b"}', "file.yaml: document 1: it has the key 'kind' twice"),
    "a list that does not end": ("a: [1, 2\n", "file.yaml: document 1: line 2 of it"),
    "JSON that does not end": ('{"a": ', "file.yaml: document 1: Expecting value"),
    "the second document": (POD + "---\n\t- x\n", "file.yaml: document 2: "),
    "an alias of nothing": ("a: *b\n", "file.yaml: document 1: "),
    "a billion laughs": (LAUGHS, "file.yaml: document 1: the manifest has more than 100000 values"),
    "far too deep": ("[" * 3000, "file.yaml: document 1: "),
    "a pod without a port": (NO_PORT, "file.yaml: document 1 (Pod p): no container declares a TCP port"),
    "a workload without a template": (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
        "file.yaml: document 1 (Deployment d): spec.template should be a mapping",
    ),
}


@pytest.mark.parametrize(("text", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_used_is_named_with_its_document(text: str, words: str) -> None:
    (refused,) = inject_text(text, InjectionSettings(), "file.yaml").refused
    assert str(refused).startswith(words)
    assert "\n" not in str(refused)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "# only this\n", "---\n", "---\n---\n", "just text\n", "- a\n-    b\n", "%YAML 1.2\n---\na:   1\n...\n",
     "apiVersion: v1\nkind: ConfigMap\ndata:\n  x: |\n    apiVersion: v1\n    kind: Pod\n", "kind: Pod\n",
     "a: 1\n--- # next\nb: 2\n"],
)  # fmt: skip
def test_what_has_no_workload_comes_out_as_it_went_in(text: str) -> None:
    outcome = inject_text(text, InjectionSettings(), "file.yaml")
    assert (outcome.text, outcome.refused) == (text, [])


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "inject", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_several_files_become_one_stream_of_documents(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    done = run("-f", str(tmp_path / "a.yaml"), "-f", "-", stdin=b"kind: Other\napiVersion: v1")
    assert done.returncode == 0
    assert done.stdout.endswith(b"---\nkind: Other\napiVersion: v1")
    assert done.stdout.count(b"name: quota-sidecar\n") > 1


def test_of_several_that_are_refused_all_are_named_and_nothing_is_printed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{NO_PORT}---\n{POD}---\n{NO_PORT}")
    done = run("-f", str(tmp_path / "a.yaml"), "-f", "-", stdin=NO_PORT.encode())
    assert (done.returncode, done.stdout) == (1, b"")
    said = done.stderr.decode()
    assert all(
        words in said for words in ("a.yaml: document 1 (Pod p)", "a.yaml: document 3", "standard input: document 1")
    )
    assert "Traceback" not in said


def test_a_dry_run_shows_what_would_change_and_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    done = run("-f", str(tmp_path / "a.yaml"), "--dry-run")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert lines[0].startswith("--- ")
    assert "-  - {name: a, image: a, ports: [{name: http, containerPort: 80}]}" in lines


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        ((), b"", 2, "--filename"),
        (("-f", "/nowhere.yaml"), b"", 2, "/nowhere.yaml: No such file"),
        (("-f", "-", "--kubernetes-version", "new"), b"", 2, "'new' is not a version like 1.33"),
        (("-f", "-"), b"a: \xff\n", 1, "is not UTF-8 at byte 3"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    arguments: tuple[str, ...], stdin: bytes, code: int, words: str
) -> None:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, words in done.stderr.decode(), b"Traceback" in done.stderr) == (code, True, False)


def test_a_warning_does_not_get_into_the_manifests() -> None:
    done = run("-f", "-", stdin=POD.replace("spec:\n", "spec:\n  terminationGracePeriodSeconds: 2\n").encode())
    assert b"warning" not in done.stdout
    assert b"warning: standard input: document 1 (Pod p): terminationGracePeriodSeconds is 2" in done.stderr.replace(
        b"\n", b" "
    )


def test_a_gateway_does_not_bring_in_what_only_manifests_need() -> None:
    program = "import sys, sidecar.cli.run, sidecar.app.serve; sys.exit('ruamel' in str(list(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert sidecar("inject", "--help").returncode == 0
