"""Accounts as the ledger stores them: loaded, decoded, shown."""
