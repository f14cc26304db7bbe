"""One version everywhere (``places``), and artefacts that were tried before they are published (``artefacts``)."""
