"""What every layer may use: logging, clocks, back-off, sockets. It imports nothing of the project."""
