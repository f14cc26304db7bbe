"""Honest stand-ins for the demo and the tests: a bank's API and an OpenMeter. Never used by production code."""
