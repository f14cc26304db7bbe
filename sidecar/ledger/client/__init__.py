"""The ledger as a gateway process uses it: holds, settles, releases, registration."""
