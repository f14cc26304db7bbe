"""What ``sidecar check`` looks at, one module for each kind of thing."""
