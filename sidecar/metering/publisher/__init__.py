"""Delivery of usage events from the outbox to OpenMeter."""
