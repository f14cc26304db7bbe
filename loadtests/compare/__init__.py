"""The side-by-side: the gateway and what a user would otherwise put there, on one machine, on loopback."""
