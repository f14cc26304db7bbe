"""Builds the source distribution and the wheel of a release, tries the wheel as users install it, and sums both.

Nothing comes into ``dist/`` before all of it was tried.
"""

from __future__ import annotations

import hashlib
import json
import os
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
TAIL_LINES: Final = 30


def build(root: Path) -> None:
    """Raises `ReleaseError`, which says what is wrong."""
    say = _Steps(8)
    version = version_of(root)
    say(f"the tree of release {version} has no change that is not committed")
    require_clean(root)
    say("every place carries the version")
    wrong = check(root)
    if wrong:
        raise ReleaseError("\n  ".join(["the version is not everywhere (python -m deploy.release sync):", *wrong]))
    work = root / "build" / "release"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    say("source distribution, built in isolation")
    tools = _environment(root / "build" / "venv")
    _run([tools, "-m", "pip", "install", "--quiet", BUILD], "the builder could not be installed")
    _run([tools, "-m", "build", "--sdist", "--outdir", work, root], "the source distribution could not be built")
    sdist = _only(work, f"quota_sidecar-{version}.tar.gz")
    require_files(sdist, _run(["git", "-C", root, "ls-files", "-z"], "git ls-files failed").split("\0")[:-1])
    say("wheel, built in isolation from the source distribution, with the request path compiled")
    _run(
        [tools, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work, sdist],
        "the wheel could not be built", QUOTA_SIDECAR_BUILD_CORE="require",
    )  # fmt: skip
    wheel = _only(work, f"quota_sidecar-{version}-*.whl")
    say(f"installed in an empty environment, with the locked requirements of {REQUIREMENTS}")
    python = _environment(work / "venv")
    locked = ["--require-hashes", "--requirement", str(root / REQUIREMENTS)]
    _run([python, "-m", "pip", "install", "--quiet", *locked], "the locked requirements could not be installed")
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], "the wheel could not be installed")
    _run([python, "-m", "pip", "check"], f"{REQUIREMENTS} is not what the wheel needs")
    program = python.with_name("sidecar")
    said = _run([program, "--version"], "sidecar --version failed").strip()
    say(f"it says that it is {said}")
    if version not in said or "compiled" not in said:
        raise ReleaseError(f"sidecar --version says {said!r}, not {version} (compiled)")
    say("one charged call through sidecar demo")
    _try(program, work)
    say("sums")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (sdist, wheel))
    dist = root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
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
    """Raises `ReleaseError`: something is not committed, or nobody can tell."""
    try:
        changes = _run(["git", "-C", root, "status", "--porcelain"], "git status failed").splitlines()
    except FileNotFoundError:
        raise ReleaseError("git is needed, which says what the release is made of") from None
    if changes:
        raise ReleaseError("\n  ".join(["the tree has changes that are not committed:", *changes]))


def require_files(sdist: Path, tracked: Sequence[str]) -> None:
    """Whoever has the source distribution alone can build, test and read everything.

    Raises:
        ReleaseError: it lacks a file that the repository has.
    """
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked if name not in names]
    if missing:
        raise ReleaseError("\n  ".join([f"{sdist.name} lacks, see [tool.hatch.build.targets.sdist]:", *missing]))


def _environment(directory: Path) -> Path:
    """A virtual environment with nothing but pip; its interpreter."""
    venv.create(directory, with_pip=True, symlinks=os.name != "nt")
    return directory / "bin" / "python"


def _clean_environment(**more: str) -> dict[str, str]:
    """Without what would let the sources be found in place of what was installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QUOTA_", "SIDECAR_"))}
    return {**kept, **more}


def _run(command: Sequence[str | Path], failed: str, **environment: str) -> str:
    """What it prints. Raises `ReleaseError` with the end of its output."""
    done = subprocess.run(  # noqa: S603  # made here
        [str(part) for part in command], env=_clean_environment(**environment), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, cwd=Path(sys.prefix),
    )  # fmt: skip
    if done.returncode != 0:
        tail = done.stdout.strip().splitlines()[-TAIL_LINES:]
        raise ReleaseError("\n  ".join([f"{failed} (exit status {done.returncode}):", *tail]))
    return done.stdout


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise ReleaseError(f"{pattern} was not built: {', '.join(path.name for path in directory.iterdir())}")
    return found[0]


def _try(program: Path, work: Path) -> None:
    """Starts the demo, makes one call that is charged, and ends it. Raises `ReleaseError`."""
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
