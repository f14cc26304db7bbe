"""Names that pods, manifests, the chart and the documentation share."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "quota.openova.io/"
INJECT: Final = PREFIX + "inject"
"""Label of a namespace or a pod (there also an annotation): "true" or "false"."""
INJECTED: Final = PREFIX + "injected"
"""Label of a pod that has the sidecar."""
STATUS: Final = PREFIX + "status"
"""Annotation of a pod that has the sidecar: JSON that says how."""

MODE: Final = PREFIX + "mode"
PORTS: Final = PREFIX + "ports"
CONFIG: Final = PREFIX + "config"
SECRET: Final = PREFIX + "secret"
IMAGE: Final = PREFIX + "image"
IMAGE_PULL_POLICY: Final = PREFIX + "image-pull-policy"
CPU_REQUEST: Final = PREFIX + "cpu-request"
MEMORY_REQUEST: Final = PREFIX + "memory-request"
CPU_LIMIT: Final = PREFIX + "cpu-limit"
MEMORY_LIMIT: Final = PREFIX + "memory-limit"
PROBES: Final = PREFIX + "probes"
EXCLUDE_PORTS: Final = PREFIX + "exclude-ports"
EXCLUDE_PATHS: Final = PREFIX + "exclude-paths"
METRICS: Final = PREFIX + "metrics"
DRAIN_SECONDS: Final = PREFIX + "drain-seconds"
NATIVE: Final = PREFIX + "native"

ANNOTATIONS: Final = (
    MODE, PORTS, CONFIG, SECRET, IMAGE, IMAGE_PULL_POLICY, CPU_REQUEST, MEMORY_REQUEST, CPU_LIMIT, MEMORY_LIMIT, PROBES,
    EXCLUDE_PORTS, EXCLUDE_PATHS, METRICS, DRAIN_SECONDS, NATIVE,
)  # fmt: skip
"""Annotations of a pod template that say how it wants its sidecar."""

CONTAINER: Final = "quota-sidecar"
REDIRECT_CONTAINER: Final = "quota-sidecar-redirect"
CONFIG_VOLUME: Final = "quota-sidecar-config"
SECRETS_VOLUME: Final = "quota-sidecar-secrets"
STATE_VOLUME: Final = "quota-sidecar-state"
EMPTY_VOLUME: Final = "quota-sidecar-no-token"
VOLUMES: Final = (CONFIG_VOLUME, SECRETS_VOLUME, STATE_VOLUME, EMPTY_VOLUME)
CONFIG_PATH: Final = "/etc/quota-sidecar"
CONFIG_FILE: Final = CONFIG_PATH + "/gateway.yaml"
SECRETS_PATH: Final = "/etc/quota-sidecar-secrets"
STATE_PATH: Final = "/var/lib/quota-sidecar"
SERVICE_ACCOUNT_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"

PROXY_PORT: Final = 15701
PROXY_PORTS_MAX: Final = 16
HEALTH_PORT: Final = 15720
HEALTH_PORT_NAME: Final = "quota-health"
ADMIN_PORT: Final = 15721
RESERVED_PORTS: Final = range(PROXY_PORT, ADMIN_PORT + 1)

USER_ID: Final = 10001
