"""Proof that the books were not changed: a keyed chain through the entries of each origin, and its verification."""
