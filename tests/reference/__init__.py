"""An independent model of the ledger, written from docs/ledger.md and not from the scripts, in exact integers."""
