"""Stand-ins for the demo and the tests: a bank's API, a Lago and an OpenMeter. Never used by production code."""
