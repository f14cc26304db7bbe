"""quota-sidecar: debits credits before a request passes, and meters every debit exactly once."""

__version__ = "0.2.0"
