"""What a process is: assembled from the configuration, with workers, signals, logs, readiness, metrics."""
