"""Who may take how much of a gateway: connections, places at the API, memory, and what gives way when it is full."""
