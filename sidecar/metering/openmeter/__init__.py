"""OpenMeter's API: access and queries."""
