"""Brings the catalog, one file of metrics, prices and customers, into Lago and OpenMeter."""
