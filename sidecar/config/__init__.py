"""Configuration: one YAML file and ``SIDECAR_…`` variables, turned into frozen models or into errors that say where.

It imports nothing of the rest but the settings models of identity, metering and billing; those import nothing that
runs.
"""
