"""The errors of writing and reading accounts: a flat list, so that callers decide by class and not by text."""

from __future__ import annotations


class LedgerUnavailable(Exception):
    """The ledger is out of reach, or answered with an error of its own. Whether a write was done is not known."""


class MalformedAccount(Exception):
    """A hash that no version of the scripts has written; the message names the account."""


class LoadError(Exception):
    """An account was not written, and its funds, prices and keys are what they were. The message says why."""


class LoadRefused(LoadError):
    """The script cannot take it: bounds that do not fit, or amounts that cannot be represented with stored ones."""


class PeriodMoved(LoadError):
    """A period has ended since ``unsettled`` was computed: compute it again."""


class UnknownAccount(LoadError):
    """The ledger has no such account."""


class ApiKeyTaken(LoadError):
    """An API key already belongs to another account; the message names that account and the hash's first digits."""


class Fenced(LoadError):
    """A leader that came later has written the account: this process does not lead any more."""
