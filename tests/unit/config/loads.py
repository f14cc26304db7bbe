"""How these tests load a configuration: as a file called gateway.yaml in the working directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.app.configuration import Config, load_config
from sidecar.config.errors import ConfigError

SMALLEST = """\
upstream: {url: "http://127.0.0.1:8000"}
valkey: embedded:///var/lib/quota
"""

FILE = Path("gateway.yaml")


def load(text: str, environ: Mapping[str, str] | None = None) -> Config:
    FILE.write_text(text)
    return load_config(FILE, environ or {})


def errors(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """The lines of the error that ``text`` gives."""
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return str(caught.value).splitlines()
