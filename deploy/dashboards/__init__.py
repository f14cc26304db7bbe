"""Grafana dashboards of the gateway and its control plane.

``python -m deploy.dashboards`` writes them into the Helm chart; a test compares what is there with what it would write.
"""
