"""What the ledger has told of accounts: their views, which gateways show in headers and bodies."""

from __future__ import annotations

from typing import Final

from sidecar.ledger.client.outcomes import AccountView

VIEWS_MAX: Final = 200_000


class AccountViews:
    """The newest view of each account, of which the ledger sends another one only when its version changes.

    ``by_account`` and ``versions`` are for reading, by account id.
    """

    def __init__(self) -> None:
        self.by_account: dict[str, AccountView] = {}
        self.versions: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"AccountViews({len(self.by_account)} accounts)"

    def note(self, account: str, version: int, packed: bytes) -> None:
        """Keeps a view. One that cannot be read is asked for again.

        Raises:
            ValueError, LookupError, TypeError: it cannot be read.
        """
        try:
            view = AccountView.from_view(version, packed)
        except (ValueError, LookupError, TypeError):
            self.by_account.pop(account, None)
            self.versions.pop(account, None)
            raise
        if account not in self.by_account and len(self.by_account) >= VIEWS_MAX:
            oldest = next(iter(self.by_account))
            del self.by_account[oldest], self.versions[oldest]
        self.by_account[account] = view
        self.versions[account] = version
