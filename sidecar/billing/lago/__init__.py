"""Lago's REST API: values, client, errors."""
