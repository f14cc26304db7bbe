"""What keeps a scenario from being run."""

from __future__ import annotations


class ScenarioError(Exception):
    """The scenario cannot be run as asked. The message says why; the command ends with 2."""
