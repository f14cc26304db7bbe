"""A stand-in for Lago."""
