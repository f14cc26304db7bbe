"""Errors that every layer may raise."""

from __future__ import annotations


class SetupError(Exception):
    """The configuration is valid, but something that it names cannot be used. The message says what and where."""
