"""A release has one version. Whatever carries another one is named, and can be put right with one command."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from deploy.release.artefacts import cause, require_clean, require_files
from deploy.release.places import CHANGELOG, PLACES, ROOT, SOURCE, Place, ReleaseError, check, sync, version_of

VERSION = version_of(ROOT)
OTHER = "99.0.1"
OURS = re.compile(rf"(?m)^## \[{re.escape(VERSION)}\].*$")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a release looks at."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sidecar").mkdir()
    for file in (SOURCE, CHANGELOG, "README.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count, f"{path} has no {pattern}"
    path.write_text(text)


def with_version(place: Place, version: str) -> str:
    """What the place's first match would be with another version."""
    found = re.search(place.pattern, (ROOT / place.file).read_text(), re.MULTILINE)
    assert found is not None
    return found.group(0).replace(VERSION, version)


places = pytest.mark.parametrize("place", PLACES, ids=[f"{place.file}: {place.what}" for place in PLACES])


def test_this_tree_has_one_version() -> None:
    assert check() == []


def test_the_package_takes_its_version_from_where_a_release_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == SOURCE


@places
def test_a_place_with_another_version_is_named_with_its_line(tree: Path, place: Place) -> None:
    edit(tree / place.file, place.pattern, with_version(place, OTHER))
    wrong = check(tree)
    assert wrong
    assert all(re.match(rf"{re.escape(place.file)}:\d+: .* is {re.escape(OTHER)}, not ", line) for line in wrong), wrong
    assert any(f": {place.what} is " in line for line in wrong)


@places
def test_a_place_that_is_gone_is_named(tree: Path, place: Place) -> None:
    edit(tree / place.file, place.pattern, "")
    assert f"{place.file}: there is no {place.what}" in check(tree)


@pytest.mark.parametrize(
    ("heading", "wrong"),
    [
        ("## [99.0.1] - 2026-01-31", "there is no section"),
        (f"## [{VERSION}]", "has no date"),
        (f"## [{VERSION}] - soon", "has no date"),
        (f"## [{VERSION}] - 2026-02-30", "has no date"),
        (f"## [{VERSION}] - 2026-01-31\n\n## [{VERSION}] - 2026-01-31", "more than one section"),
        (f"## [{VERSION}] - 2026-01-31\n\n## [0.0.1] - 2026-01-30", "says nothing"),
    ],
)
def test_a_changelog_without_a_dated_section_of_the_version_is_named(tree: Path, heading: str, wrong: str) -> None:
    edit(tree / CHANGELOG, OURS.pattern.removeprefix("(?m)"), heading)
    [line] = check(tree)
    assert line.startswith(f"{CHANGELOG}: ")
    assert wrong in line


def test_a_new_version_is_written_to_every_place_but_the_changelog(tree: Path) -> None:
    edit(tree / SOURCE, re.escape(VERSION), OTHER)
    assert {line.split(":")[0] for line in check(tree)} == {place.file for place in PLACES} | {CHANGELOG}
    assert sync(tree) == sorted({place.file for place in PLACES})
    assert check(tree) == [f"{CHANGELOG}: there is no section ## [{OTHER}]"]
    assert sync(tree) == [], "a second time there is nothing to write"


@pytest.mark.parametrize("text", ["", '__version__ = "next"', '__version__ = "1.2"'])
def test_what_is_no_version_is_refused(tree: Path, text: str) -> None:
    (tree / SOURCE).write_text(text)
    with pytest.raises(ReleaseError, match=re.escape(SOURCE)):
        check(tree)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("  Traceback\n    RuntimeError: there is no C compiler\n  [end of output]\nerror: metadata failed\n",
         "RuntimeError: there is no C compiler"),
        ("Collecting a\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n    a==1\n",
         "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"),
        ("a 1 requires b, which is not installed.\n", "a 1 requires b, which is not installed."),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_a_failed_step_names_the_cause_first(output: str, named: str) -> None:
    assert cause(output) == named


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_nothing_is_released_of_a_tree_with_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *arguments], cwd=tmp_path, check=True
        )

    with pytest.raises(ReleaseError, match="git status failed"):
        require_clean(tmp_path)
    git("init", "--quiet")
    require_clean(tmp_path)
    (tmp_path / "new.py").touch()
    with pytest.raises(ReleaseError, match=r"not committed:\n  \?\? new\.py"):
        require_clean(tmp_path)
    git("add", "new.py")
    git("commit", "--quiet", "--message", "new")
    require_clean(tmp_path)


def test_a_source_distribution_that_lacks_a_file_of_the_repository_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quota_sidecar-1.tar.gz"
    (tmp_path / "empty").touch()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "empty", "quota_sidecar-1/tests/a.py")
        archive.add(tmp_path / "empty", "quota_sidecar-1/PKG-INFO")
    require_files(path, ["tests/a.py"])
    with pytest.raises(ReleaseError, match=r"lacks, .*:\n  SECURITY\.md$"):
        require_files(path, ["tests/a.py", "SECURITY.md"])
