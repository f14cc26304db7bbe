"""HTTP/1.1 messages without I/O: grammar, heads, framing, bodies (RFC 9110, RFC 9112)."""
