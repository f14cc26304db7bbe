"""Makes a release. The version is that of ``sidecar/__init__.py``.

    python -m deploy.release check   # every other place that must carry the version does, and the changelog has it
    python -m deploy.release sync    # write it there; needs Helm, as python -m deploy.kustomize does
    python -m deploy.release build   # build, install and try the artefacts, and put them into dist/

``check`` and ``build`` need nothing but Python; ``build`` needs git and a C compiler too. Exit status: 0 all is well,
1 something is wrong, 2 misuse.
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
        print(f"version {version_of(ROOT)}: every place carries it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
