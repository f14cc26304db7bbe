"""The archive: append-only files of everything that left the outbox."""
