"""Releases: one version in all places (``places``), and tested artefacts (``artefacts``)."""
