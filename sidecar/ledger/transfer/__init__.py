"""Moves the data of a ledger into a file and back (`sidecar ledger export` and `import`)."""
