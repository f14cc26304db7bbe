"""One request and its answer, with the charge that belongs to them."""
