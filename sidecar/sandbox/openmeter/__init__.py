"""A stand-in for OpenMeter."""
