"""What a scenario is run against, whether it was started here or is somebody's deployment."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.scenarios.plan import Call, Caller


class CannotRun(Exception):
    """The scenario cannot be run; the message is one line and names what is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that no ``repr`` shows."""

    value: str = field(repr=False)


NO_SECRET = Secret("")


@dataclass(frozen=True, slots=True)
class Target:
    """``admin``, ``valkey``, ``openmeter``, ``lago``: base URLs, "" without access. ``pids``: gateways whose memory
    can be looked at. ``about``: sentences for the report on what was started, and with what durability.
    """

    urls: tuple[str, ...]
    callers: tuple[Caller, ...]
    calls: tuple[Call, ...]
    admin: str = ""
    admin_token: Secret = NO_SECRET
    valkey: Secret = NO_SECRET
    openmeter: str = ""
    openmeter_token: Secret = NO_SECRET
    meters: tuple[str, ...] = ("api_calls",)
    lago: str = ""
    lago_key: Secret = NO_SECRET
    pids: tuple[int, ...] = ()
    echo: str = ""
    blob: str = ""
    about: tuple[str, ...] = ()

    @property
    def accounts(self) -> tuple[str, ...]:
        return tuple(caller.account for caller in self.callers)
