"""The places that carry the version. ``sidecar/__init__.py`` defines it; ``check`` compares, ``sync`` writes.

``python -m deploy.kustomize`` generates some of the files from the chart. ``sync`` generates them again.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = "sidecar/__init__.py"
CHANGELOG: Final = "CHANGELOG.md"
_SOURCE: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_RELEASE: Final = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
_TAG: Final = r"/quota-sidecar:([0-9A-Za-z._-]+)"
_LABEL: Final = r'^ *app\.kubernetes\.io/version: "([^"]*)"$'


class ReleaseError(Exception):
    """A release cannot be made; the message names the cause."""


@dataclass(frozen=True, slots=True)
class Place:
    """The only group of ``pattern`` is the version; ``pattern`` must match at least once."""

    file: str
    what: str
    pattern: str
    generated: bool = False


PLACES: Final = (
    Place("README.md", "output of sidecar --version", r"^(\d\S*) \(compiled\)$"),
    Place("deploy/chart/quota-sidecar/Chart.yaml", "version", r"^version: (\S+)$"),
    Place("deploy/chart/quota-sidecar/Chart.yaml", "appVersion", r'^appVersion: "([^"]*)"$'),
    Place("deploy/Dockerfile", "ARG VERSION", r"^ARG VERSION=(\S+)$"),
    Place("deploy/Dockerfile", "image tag in the comment", rf"^# .*{_TAG}"),
    Place("deploy/README.md", "image tag", _TAG),
    Place("deploy/platform/catalog/job.yaml", "image tag", rf"^ *image: \S*{_TAG}$"),
    Place("deploy/kustomize/overlays/production/kustomization.yaml", "newTag", r"^ *newTag: (\S+)$"),
    Place("deploy/kustomize/base/control-plane.yaml", "version label", _LABEL, generated=True),
    Place("deploy/kustomize/base/control-plane.yaml", "image tag", _TAG, generated=True),
    Place("deploy/kustomize/base/injector.yaml", "version label", _LABEL, generated=True),
    Place("deploy/kustomize/base/injector.yaml", "image tag", _TAG, generated=True),
    Place("deploy/kustomize/data-plane/network-policy.yaml", "version label", _LABEL, generated=True),
    Place("deploy/kustomize/overlays/production/network-policies.yaml", "version label", _LABEL, generated=True),
    Place("deploy/kustomize/overlays/production/monitors.yaml", "version label", _LABEL, generated=True),
)


def version_of(root: Path) -> str:
    """The version that all other places must carry. Raises `ReleaseError`."""
    found = _SOURCE.search(_text(root, SOURCE))
    if found is None:
        raise ReleaseError(f'{SOURCE} has no line __version__ = "…"')
    version = found.group(1)
    if _RELEASE.fullmatch(version) is None:
        raise ReleaseError(f"{SOURCE}: {version!r} is not a version such as 1.2.3 or 1.2.3rc1")
    return version


def check(root: Path = ROOT) -> list[str]:
    """One line for each place that has another version or none. Raises `ReleaseError`: there is no version."""
    version = version_of(root)
    wrong = []
    for place in PLACES:
        text = _text(root, place.file)
        found = list(re.finditer(place.pattern, text, re.MULTILINE))
        if not found:
            wrong.append(f"{place.file}: there is no {place.what}")
        for match in found:
            if match.group(1) != version:
                line = text.count("\n", 0, match.start(1)) + 1
                wrong.append(f"{place.file}:{line}: {place.what} is {match.group(1)}, not {version}")
    return wrong + _changelog(root, version)


def sync(root: Path = ROOT) -> list[str]:
    """Writes the version to every place but the changelog, which people write. Returns the files that changed.

    Raises:
        ReleaseError: there is no version, or the chart cannot be rendered.
    """
    version = version_of(root)
    files = sorted({place.file for place in PLACES})
    before = {file: _text(root, file) for file in files}
    for file in files:
        text = before[file]
        for place in PLACES:
            if place.file == file and not place.generated:
                text = re.sub(place.pattern, lambda match: _with(match, version), text, flags=re.MULTILINE)
        if text != before[file]:
            (root / file).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.kustomize"], cwd=root, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ReleaseError(f"python -m deploy.kustomize: {done.stderr.strip()}")
    return [file for file in files if _text(root, file) != before[file]]


def _with(match: re.Match[str], version: str) -> str:
    start, end = match.span(1)
    return match.group(0)[: start - match.start()] + version + match.group(0)[end - match.start() :]


def _changelog(root: Path, version: str) -> list[str]:
    sections = re.split(r"^## ", _text(root, CHANGELOG), flags=re.MULTILINE)
    ours = [section for section in sections if section.startswith(f"[{version}]")]
    if len(ours) != 1:
        return [f"{CHANGELOG}: there is {'no' if not ours else 'more than one'} section ## [{version}]"]
    title, _, body = ours[0].partition("\n")
    date = title.removeprefix(f"[{version}]").removeprefix(" - ").strip()
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        return [f"{CHANGELOG}: ## [{version}] has no date as in ## [{version}] - 2026-01-31"]
    if not body.strip():
        return [f"{CHANGELOG}: ## [{version}] says nothing"]
    return []


def _text(root: Path, file: str) -> str:
    try:
        return (root / file).read_text()
    except OSError as error:
        raise ReleaseError(f"{file}: {error.strerror}") from None
