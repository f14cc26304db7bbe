"""Lago's webhooks: verified, read only for the names in them, and turned into reload requests."""
