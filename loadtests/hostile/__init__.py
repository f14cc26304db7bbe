"""Honest callers while others attack: `python -m loadtests.hostile` (README.md of the load tests)."""
