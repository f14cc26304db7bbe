"""Builds the source distribution and the wheel, installs the wheel as users do, tests it, and writes the checksums.

The files are copied to ``dist/`` after the last step, so that ``dist/`` never has a file that was not tested.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deploy.release.places import ReleaseError, check, version_of

BUILD: Final = "build>=1.2,<2"
REQUIREMENTS: Final = "deploy/requirements.txt"
SUMS: Final = "SHA256SUMS"
PATH: Final = "/open-banking/v3.1/aisp/accounts"
START_S: Final = 60.0


def build(root: Path) -> None:
    """Makes a release from the working tree. Raises `ReleaseError`: a step failed; the message names the cause."""
    say = _Steps(8)
    version = version_of(root)
    say(f"Release {version}: checking that all changes are committed")
    require_clean(root)
    say("Checking the version in all places and in the changelog")
    wrong = check(root)
    if wrong:
        raise ReleaseError("\n  ".join(["the version is not in all places (python -m deploy.release sync):", *wrong]))
    work, dist = root / "build" / "release", root / "dist"
    for old in (work, dist):
        shutil.rmtree(old, ignore_errors=True)
    work.mkdir(parents=True)
    say("Building the source distribution in isolation")
    tools = _environment(root / "build" / "venv")
    _run([tools, "-m", "pip", "install", "--quiet", BUILD], "the builder could not be installed")
    _run([tools, "-m", "build", "--sdist", "--outdir", work, root], "the source distribution could not be built")
    sdist = _only(work, f"quota_sidecar-{version}.tar.gz")
    require_files(sdist, _run(["git", "-C", root, "ls-files", "-z"], "git ls-files failed").split("\0")[:-1])
    say("Building the wheel from the source distribution in isolation, with the request path compiled")
    _run(
        [tools, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work, sdist],
        "the wheel could not be built", QUOTA_SIDECAR_BUILD_CORE="require",
    )  # fmt: skip
    wheel = _only(work, f"quota_sidecar-{version}-*.whl")
    say(f"Installing {REQUIREMENTS} (with hashes) and the wheel in an empty environment")
    python = _environment(work / "venv")
    locked = ["--require-hashes", "--requirement", str(root / REQUIREMENTS)]
    _run([python, "-m", "pip", "install", "--quiet", *locked], "the locked requirements could not be installed")
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], "the wheel could not be installed")
    _run([python, "-m", "pip", "check"], f"{REQUIREMENTS} is not what the wheel needs")
    program = python.with_name("sidecar")
    say(f"Checking that sidecar --version prints {version} (compiled)")
    said = _run([program, "--version"], "sidecar --version failed").strip()
    if said != f"{version} (compiled)":
        raise ReleaseError(f"sidecar --version prints {said!r}")
    say("Starting sidecar demo and making one charged call")
    _try(program, work)
    say(f"Copying both files to dist and writing {SUMS}")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (sdist, wheel))
    dist.mkdir()
    for path in (sdist, wheel):
        shutil.copy2(path, dist)
    (dist / SUMS).write_text(sums)
    print(f"\ndist/{SUMS}:\n{sums}", end="")


class _Steps:
    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total

    def __call__(self, text: str) -> None:
        self._done += 1
        print(f"[{self._done}/{self._total}] {text}", flush=True)


def require_clean(root: Path) -> None:
    """Raises `ReleaseError`: the working tree has changes, or git cannot tell."""
    try:
        changes = _run(["git", "-C", root, "status", "--porcelain"], "git status failed").splitlines()
    except FileNotFoundError:
        raise ReleaseError("git is not installed; it tells whether the tree has changes") from None
    if changes:
        raise ReleaseError("\n  ".join(["the tree has changes that are not committed:", *changes]))


def require_files(sdist: Path, tracked: Sequence[str]) -> None:
    """Raises `ReleaseError`: the source distribution lacks a file that the repository has."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked if name not in names]
    if missing:
        raise ReleaseError("\n  ".join([f"{sdist.name} lacks, see [tool.hatch.build.targets.sdist]:", *missing]))


def _environment(directory: Path) -> Path:
    """Creates a virtual environment that has pip and nothing else. Returns its interpreter."""
    venv.create(directory, with_pip=True, symlinks=os.name != "nt")
    return directory / "bin" / "python"


def _clean_environment(**more: str) -> dict[str, str]:
    """The environment without variables that would make Python find the sources instead of the installed package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QUOTA_", "SIDECAR_"))}
    return {**kept, **more}


def _run(command: Sequence[str | Path], failed: str, **environment: str) -> str:
    """Runs a command and returns its output. Raises `ReleaseError` with the cause first, then the whole output."""
    done = subprocess.run(  # noqa: S603  # made here
        [str(part) for part in command], env=_clean_environment(**environment), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, cwd=Path(sys.prefix),
    )  # fmt: skip
    if done.returncode != 0:
        raise ReleaseError(f"{failed}: {cause(done.stdout)}\n{done.stdout.strip()}")
    return done.stdout


def cause(output: str) -> str:
    """The line of the output that names the error: the last exception, else a tool's error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"\w+Error: ", r"(?:ERROR|error|fatal): "):
        found = [line for line in lines if re.match(pattern, line)]
        if found:
            return found[-1]
    return lines[-1] if lines else "it printed nothing"


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise ReleaseError(f"{pattern} was not built: {', '.join(path.name for path in directory.iterdir())}")
    return found[0]


def _try(program: Path, work: Path) -> None:
    """Starts the demo, makes one charged call, and stops the demo. Raises `ReleaseError`."""
    command = [str(program), "demo", "--proxy-port", "0", "--admin-port", "0", "--json"]
    with (work / "demo.log").open("w+") as log:
        demo = subprocess.Popen(  # noqa: S603  # made here
            command, env=_clean_environment(), cwd=work, stdout=subprocess.PIPE, stderr=log, text=True
        )
        alarm = threading.Timer(START_S, demo.kill)
        alarm.start()
        try:
            assert demo.stdout is not None
            line = demo.stdout.readline()
            if not line:
                log.seek(0)
                raise ReleaseError(f"sidecar demo did not start: {log.read()[-2000:].strip() or 'it said nothing'}")
            _call(json.loads(line))
            demo.send_signal(signal.SIGTERM)
            status = demo.wait()
        finally:
            alarm.cancel()
            demo.kill()
            demo.wait()
    if status != 0:
        raise ReleaseError(f"sidecar demo ended with exit status {status} after SIGTERM; see {work / 'demo.log'}")


def _call(ready: dict[str, Any]) -> None:
    [key] = [account["api_key"] for account in ready["accounts"] if account["id"] == "tpp-prepaid"]
    request = urllib.request.Request(f"{ready['proxy']}{PATH}", headers={"X-API-Key": key})  # noqa: S310  # loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            charged = answer.headers.get("X-Credits-Charged")
    except urllib.error.URLError as error:
        raise ReleaseError(f"the call through sidecar demo failed: {error}") from None
    if charged is None:
        raise ReleaseError("the call through sidecar demo was not charged: there is no X-Credits-Charged in the answer")
