"""A simulated Valkey server (:class:`tests.simulation.valkey.server.SimulatedValkey`), and a real one with a held clock."""
