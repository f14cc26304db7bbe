"""What many accounts cost the control plane: ``python -m loadtests.billing_scale --accounts 100000``."""
