"""The control plane's loops: leadership, reconciliation, usage sync, webhooks."""
