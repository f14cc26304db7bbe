"""Billing: what Lago knows, brought into the ledger, and what was metered, brought to Lago."""
