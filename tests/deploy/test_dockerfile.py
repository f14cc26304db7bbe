"""The Dockerfile: linted, small, not root, and made of what is there. No image is built here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sidecar import __version__
from sidecar.kubernetes import names
from tests.deploy.manifests import DEPLOY

ROOT = DEPLOY.parent
TEXT = (DEPLOY / "Dockerfile").read_text()
IGNORED = (DEPLOY / "Dockerfile.dockerignore").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = (DEPLOY / "requirements.txt").read_text()
LOCKED = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)\n", REQUIREMENTS, re.MULTILINE)
PINS = {canonicalize_name(name): pinned for name, pinned, _ in LOCKED}


def instructions() -> list[tuple[str, str]]:
    """Name and arguments, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#")))
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("hadolint")  # installed with the tests
    done = subprocess.run([program, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_it_runs_as_the_user_that_pods_say_by_number() -> None:
    assert [rest for name, rest in final_stage() if name == "USER"] == [f"{names.USER_ID}:{names.USER_ID}"]


def test_it_begins_as_a_gateway_with_the_settings_where_pods_have_them() -> None:
    found = dict(final_stage())
    assert found["ENTRYPOINT"] == '["sidecar"]'
    assert found["CMD"] == f'["run", "-c", "{names.CONFIG_FILE}"]'


def test_it_has_nft_and_nothing_that_builds() -> None:
    installed = [rest for name, rest in final_stage() if name == "RUN"]
    assert re.findall(r"apt-get install --yes --no-install-recommends (.*?) +&&", installed[0]) == ["nftables"]
    assert "pip uninstall" in installed[0]
    assert "gcc" not in "".join(rest for _, rest in final_stage())


def test_the_request_path_is_compiled_or_there_is_no_image() -> None:
    assert "QUOTA_SIDECAR_BUILD_CORE=require pip wheel" in TEXT


def test_both_stages_are_of_one_pinned_python_that_the_package_takes() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert bases == ["${PYTHON_IMAGE}"] * 2
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"python:3\.(1[1-9])-slim-bookworm(@sha256:[0-9a-f]{64})?", image)
    assert re.findall(r"^ARG VERSION=(\S+)$", TEXT, re.MULTILINE) == [__version__]


def test_what_is_copied_is_there_and_passes_dockerignore() -> None:
    sources = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert {"sidecar", "lua", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert sent(source), f"{source} is not sent to the build"


SECRET_OR_LOCAL = (
    "sidecar/gateway/_scan.cpython-311-x86_64-linux-gnu.so",
    "sidecar/__pycache__/a.pyc",
    ".git/config",
    "tests/a.py",
    ".venv/bin/python",
    "valkey-password",
)


@pytest.mark.parametrize("path", SECRET_OR_LOCAL)
def test_what_was_built_here_and_what_may_be_secret_is_not_sent(path: str) -> None:
    assert not sent(path)


def test_every_requirement_is_pinned_to_a_version_that_the_package_takes() -> None:
    for text in PROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        pinned = PINS.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is missing in deploy/requirements.txt"
        assert requirement.specifier.contains(pinned), f"{requirement.name} {pinned}"


def test_only_files_with_a_known_hash_are_installed() -> None:
    assert [name for name, _, hashes in LOCKED if not hashes] == []
    [install] = [rest for name, rest in instructions() if name == "RUN" and "requirements.txt" in rest]
    assert "--require-hashes" in install


def test_the_list_names_no_place_to_download_from() -> None:
    """Each line is a requirement, a hash or a comment, so that whoever builds decides on the index."""
    rest = [line for line in REQUIREMENTS.splitlines() if not re.fullmatch(r" *#.*| +--hash=\S+(?: \\)?", line)]
    assert len(rest) == len(LOCKED)
    assert "://" not in REQUIREMENTS


def test_the_list_says_how_to_make_it_anew() -> None:
    assert "make requirements" in REQUIREMENTS.partition("==")[0]


def test_pins_are_complete() -> None:
    """What the pinned packages need themselves, as far as they are installed here in the same version."""
    for name, pinned in PINS.items():
        try:
            if version(name) != pinned:
                continue
        except PackageNotFoundError:
            continue
        for text in requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in PINS, f"{name} needs {needed.name}"


def sent(path: str) -> bool:
    """Whether a file is part of the build's context; the last pattern that matches decides."""
    decided = True
    parts = path.split("/")
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for line in IGNORED.splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        anywhere = pattern.startswith("**/")
        names_tried = parts if anywhere else prefixes
        if any(fnmatch.fnmatchcase(each, pattern.removeprefix("**/")) for each in names_tried):
            decided = line.startswith("!")
    return decided
