"""Charges on disk while the ledger is out of reach."""
