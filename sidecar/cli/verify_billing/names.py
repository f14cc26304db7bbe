"""Names of a run's objects. They all begin with its prefix, so that it finds its own again and touches no other."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

PREFIX: Final = re.compile(r"verify-[a-z0-9]+")
"""A fixed word, so that nobody cleans away what a bank has named, and no further hyphen, so that no prefix is the start
of another run's names."""

PREFIX_CHARS_MAX: Final = 24

SCHEMES: Final = ("sepa", "swift")
"""Values of the property that charges filter by."""
OTHER_SCHEME: Final = "other"
"""What no filter takes."""


class BadPrefix(ValueError):
    """A text is not a prefix. The message says what one is."""


def new_prefix() -> str:
    return f"verify-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Names:
    """Raises `BadPrefix`."""

    prefix: str

    def __post_init__(self) -> None:
        if not PREFIX.fullmatch(self.prefix) or len(self.prefix) > PREFIX_CHARS_MAX:
            raise BadPrefix(
                f"must be verify- and lower-case letters or digits, {PREFIX_CHARS_MAX} characters at most, such as"
                " verify-1"
            )

    def of(self, name: str) -> str:
        """Of an account, a plan or a webhook endpoint."""
        return f"{self.prefix}-{name}"

    def subscription(self, account: str) -> str:
        return f"{account}-sub"

    @property
    def metric(self) -> str:
        """Of Lago's metric and OpenMeter's meter, whose names have no hyphens."""
        return f"{self._words}_calls"

    @property
    def filtered_code(self) -> str:
        """Of Lago's billable metric that charges filter."""
        return f"{self._words}_payments"

    def filtered_metric(self, scheme: str) -> str:
        """Of the gateway's metric, and OpenMeter's meter, for a scheme of payments."""
        return self.filtered_code if scheme == OTHER_SCHEME else f"{self.filtered_code}_{scheme}"

    @property
    def tax(self) -> str:
        return f"{self._words}_vat"

    @property
    def event_type(self) -> str:
        """Of usage events: no other meter counts them."""
        return f"{self.prefix}.call"

    @property
    def ledger(self) -> str:
        """The first part of every key in Valkey."""
        return self.prefix

    def owns(self, name: str | None) -> bool:
        """Whether this run gave the name."""
        return name is not None and name.startswith((f"{self.prefix}-", f"{self._words}_"))

    @property
    def _words(self) -> str:
        return self.prefix.replace("-", "_")
