"""Price tables, and the cost of units by them."""
