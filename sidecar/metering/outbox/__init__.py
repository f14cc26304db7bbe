"""The outbox in Valkey: its streams, its entries, its status."""
