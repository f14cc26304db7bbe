"""Makes the ledger's accounts from Lago's customers, wallets, plans and invoices."""
