"""Scenarios of load: many TPPs at once, some of them while something breaks, and what must hold all the same."""
