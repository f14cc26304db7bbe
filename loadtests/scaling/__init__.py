"""What a request costs as something grows: accounts, connections, bodies, tiers, the outbox, gateways."""
