"""Connections to Valkey: topologies, RESP, partition calls, deadlines, scripts, leases, the embedded server."""
