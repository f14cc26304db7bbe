"""From Lago's customers, wallets, plans and invoices to the ledger's accounts."""
