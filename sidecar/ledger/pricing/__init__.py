"""Price tables and what units cost by them."""
