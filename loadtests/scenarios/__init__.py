"""Load-test scenarios: traffic by locust, trouble on purpose, and exact books afterwards."""
