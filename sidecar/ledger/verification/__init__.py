"""Checks of a ledger against itself, what it takes of memory, and the settles that no account could take."""
