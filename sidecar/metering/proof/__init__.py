"""Reads the books, outbox, tail and archive, and verifies them against their chains."""
