"""Makes a release. ``sidecar/__init__.py`` defines the version.

    python -m deploy.release check   # compare every other place that must carry the version, and the changelog
    python -m deploy.release sync    # write the version to those places; needs Helm, like python -m deploy.kustomize
    python -m deploy.release build   # build, install and test the artefacts, and copy them to dist/

``check`` needs Python only; ``build`` needs git and a C compiler too. Exit status: 0 success, 1 a check or a step
failed, 2 misuse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploy.release.artefacts import build
from deploy.release.places import ROOT, ReleaseError, check, sync, version_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "sync", "build"))
    command = parser.parse_args(arguments).command
    try:
        if command == "build":
            build(ROOT)
            return 0
        if command == "sync":
            for file in sync():
                print(f"{file}: {version_of(ROOT)}")
        wrong = check()
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"version {version_of(ROOT)}: all places carry it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
