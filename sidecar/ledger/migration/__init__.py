"""Makes a ledger of this format out of one of format 1 (release 0.2), beside it on the same Valkey."""
