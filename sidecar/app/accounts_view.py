"""Accounts as the admin side and the command line show them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sidecar.ledger.accounts.loader import AccountLoader


class AccountsView:
    """Reads through the loader; what may be known of keys is their number."""

    def __init__(self, loader: AccountLoader) -> None:
        self._loader = loader

    async def page(self, after: str, limit: int) -> list[str]:
        """Up to ``limit`` ids after ``after``, in order."""
        return list(await self._loader.list(after, limit))

    async def detail(self, account: str) -> dict[str, Any] | None:
        """Everything that may be shown, or None if there is no such account."""
        snapshot = await self._loader.show(account)
        return asdict(snapshot) if snapshot is not None else None
