"""docs/configuration.md and the models say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sidecar.app.configuration_reference import render
from sidecar.app.schema_rows import schema_rows

REPOSITORY = Path(__file__).parents[3]


def test_the_reference_in_docs_is_what_the_models_say() -> None:
    written = (REPOSITORY / "docs" / "configuration.md").read_text()

    assert written == render(), "run: python -m sidecar.app.configuration_reference > docs/configuration.md"


def test_every_key_says_what_it_is_for() -> None:
    rows = schema_rows()

    assert len(rows) > 100
    assert [row.path for row in rows if len(row.description) < 10] == []


def test_a_row_has_path_type_default_and_bounds() -> None:
    rows = {row.path: row for row in schema_rows()}

    assert (rows["listen.port"].type, rows["listen.port"].default) == ("whole number, 0 to 65535", "8080")
    assert (rows["valkey"].type, rows["valkey"].default) == ("URL", "required")
    assert rows["routes[].path"].default == "required"
    assert rows["identity[jwt].issuer"].default == "required"
    assert rows["limits.requests_per_connection_max"].type == "whole number or null, 1 to 1000000"


def test_configuration_is_read_without_loading_what_runs() -> None:
    # In a process of its own: this one has loaded everything.
    program = (
        "import sys, sidecar.config.reading\n"
        "print([m for m in sys.modules if m.startswith('sidecar.')"
        " and m.split('.')[1] in ('proxy', 'ledger', 'control', 'cli', 'sandbox')])"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
