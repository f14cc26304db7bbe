"""The ledger in Valkey: accounts, prices, holds and charges."""
