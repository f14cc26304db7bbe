"""From a YAML file to a tree that knows where each value stands."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.config.document import BYTES_MAX, Node, compose
from sidecar.config.errors import ConfigError, Origin, Problem


def read_document(path: Path, *, needs: str = "", bytes_max: int = BYTES_MAX) -> Node:
    """Read a YAML file into a tree. ``needs`` is the key that the file has to set; "" if it may be empty.

    Raises:
        ConfigError: it cannot be read, or is no YAML within the limits, or is empty and may not be.
    """
    source = str(path)
    try:
        # A pipe (/dev/stdin, process substitution) has no size to ask for, hence one byte more than is allowed.
        with open(os.fspath(path), "rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError([Problem(Origin(source), "", error.strerror or "cannot be read")]) from None
    except ValueError:
        raise ConfigError([Problem(Origin(repr(source)), "", "is not a file's name")]) from None
    root = compose(raw, source, bytes_max=bytes_max)
    if needs and root.content == {}:
        raise ConfigError([empty(source, needs)])
    return root


def empty(source: str, needs: str) -> Problem:
    """What is said of a file without a value in it."""
    return Problem(Origin(source), "", f"is empty; set at least {needs}")
