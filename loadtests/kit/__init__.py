"""What the measurements share: processes that end with their block, meters, the load generator, an upstream."""
