"""A sample UK Open Banking API (v3.1)."""
