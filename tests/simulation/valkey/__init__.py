"""A simulated Valkey server (``server.SimulatedValkey``), and a real one with a held clock to judge it."""
