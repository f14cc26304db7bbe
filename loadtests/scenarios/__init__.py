"""Load-test scenarios: traffic by locust, faults on purpose, and exact counts afterwards."""
