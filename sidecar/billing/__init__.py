"""Brings Lago's accounts into the ledger and metered usage to Lago."""
