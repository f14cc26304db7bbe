"""Lago's webhooks: verified, understood just enough to know whom to look at again, and turned into doorbells."""
