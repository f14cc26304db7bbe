"""Usage events: from the outbox to OpenMeter, and the audit of what arrived."""
