"""Errors that a command may end with, as messages."""

from __future__ import annotations

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoError, LagoSetupError
from sidecar.config.errors import ConfigError
from sidecar.ledger.accounts.loader import LedgerUnavailable, LoadError, MalformedAccount, UnknownAccount
from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import CLIENT_ERRORS

FAILED, MISUSED = 1, 2
_MESSAGE_ERRORS = (
    SetupError,
    LedgerUnavailable,
    LoadError,
    UnknownAccount,
    MalformedAccount,
    LagoSetupError,
    MeteringError,
    QueryError,
)
"""Errors whose texts are messages already."""


def explained(error: Exception) -> tuple[str, int] | None:
    """The message and the exit code for an error of the user's or of the surroundings; None for a defect."""
    if isinstance(error, ConfigError):
        return str(error), MISUSED
    if isinstance(error, _MESSAGE_ERRORS):
        return str(error), FAILED
    if isinstance(error, LagoError):
        return f"Lago: {error}", FAILED
    if isinstance(error, OSError):
        return f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error), FAILED
    if isinstance(error, CLIENT_ERRORS):
        return f"the ledger cannot be reached: {reason_of(error)}", FAILED
    return None
