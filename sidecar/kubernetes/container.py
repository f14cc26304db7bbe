"""The sidecar's containers and volumes, as they stand in a pod."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sidecar.kubernetes import names
from sidecar.kubernetes.injection_options import InjectionOptions, InjectionSettings

GRACE_S_DEFAULT: Final = 30
"""Kubernetes' own, of ``terminationGracePeriodSeconds``."""
SETTLE_S: Final = 5
"""Of a pod's grace period, what is left for the sidecar to settle and for the application to end."""
STATE_SIZE: Final = "256Mi"
"""More than a spool and confirmed charges take by default: who writes more is evicted, and its spool with it."""
_SECRET_MODE: Final = 0o444  # a volume's files are root's, and nobody else is in the container
_REDIRECT_RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "96Mi"}}


def sidecar(
    options: InjectionOptions,
    ports: Sequence[dict[str, Any]],
    numbers: Sequence[int] | None,
    checks: dict[str, dict[str, Any]],
    grace_s: int,
) -> dict[str, Any]:
    """The gateway's container.

    Args:
        ports: entries that it takes over, in named-port mode.
        numbers: the application's, in the same order; None for all of them.
        checks: of the application, that it makes for the kubelet.
        grace_s: what the pod has to end.
    """
    settings = options.settings
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": ["run", "-c", names.CONFIG_FILE],
        "ports": [*ports, {"name": names.HEALTH_PORT_NAME, "containerPort": names.HEALTH_PORT, "protocol": "TCP"}],
        "env": _environment(options, numbers, checks, grace_s),
        "startupProbe": _probe("/livez", period_s=1, failures=60),
        "livenessProbe": _probe("/livez", period_s=10, failures=3),
        "readinessProbe": _probe("/readyz", period_s=2, failures=2),
        "lifecycle": {"preStop": {"exec": {"command": ["sidecar", "drain", "-c", names.CONFIG_FILE]}}},
        "resources": _resources(settings),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": names.USER_ID,
            "runAsGroup": names.USER_ID,
            **_restricted([]),
        },
        "volumeMounts": [
            {"name": names.CONFIG_VOLUME, "mountPath": names.CONFIG_PATH, "readOnly": True},
            {"name": names.SECRETS_VOLUME, "mountPath": names.SECRETS_PATH, "readOnly": True},
            {"name": names.STATE_VOLUME, "mountPath": names.STATE_PATH},
            _no_token(),
        ],
    }
    if settings.native:
        container["restartPolicy"] = "Always"
    return container


def redirect(options: InjectionOptions, numbers: Sequence[int] | None) -> dict[str, Any]:
    """The step that leads the pod's incoming connections to the sidecar, before the application starts."""
    args = ["redirect", "--to", str(names.PROXY_PORT), "--ports", _joined(numbers) if numbers is not None else "*"]
    if numbers is None:
        args += ["--exclude", _joined(sorted({*options.exclude_ports, names.HEALTH_PORT}))]
    return {
        "name": names.REDIRECT_CONTAINER,
        "image": options.settings.image,
        "imagePullPolicy": options.settings.image_pull_policy,
        "args": args,
        "resources": json.loads(json.dumps(_REDIRECT_RESOURCES)),
        "securityContext": {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0, **_restricted(["NET_ADMIN"])},
        "volumeMounts": [_no_token()],
    }


def volumes(settings: InjectionSettings) -> list[dict[str, Any]]:
    """Configuration, secrets if there are some, room for what is spooled, and nothing in place of a token."""
    return [
        {"name": names.CONFIG_VOLUME, "configMap": {"name": settings.config_map}},
        {
            "name": names.SECRETS_VOLUME,
            "secret": {"secretName": settings.secret, "optional": True, "defaultMode": _SECRET_MODE},
        },
        {"name": names.STATE_VOLUME, "emptyDir": {"sizeLimit": STATE_SIZE}},
        {"name": names.EMPTY_VOLUME, "emptyDir": {}},
    ]


def _no_token() -> dict[str, Any]:
    """Nothing, where the API server would mount the token of the application's service account, as into every container
    that has no mount there (Kubernetes, plugin/pkg/admission/serviceaccount)."""
    return {"name": names.EMPTY_VOLUME, "mountPath": names.SERVICE_ACCOUNT_PATH, "readOnly": True}


def _environment(
    options: InjectionOptions, numbers: Sequence[int] | None, checks: dict[str, dict[str, Any]], grace_s: int
) -> list[dict[str, Any]]:
    settings = options.settings
    values = {
        "SIDECAR_CONFIG": names.CONFIG_FILE,
        "SIDECAR_LISTEN__HOST": "::",
        "SIDECAR_LISTEN__PORT": str(names.PROXY_PORT),
        "SIDECAR_ADMIN__HOST": "127.0.0.1",
        "SIDECAR_ADMIN__PORT": str(names.ADMIN_PORT),
        "SIDECAR_HEALTH__HOST": "::",
        "SIDECAR_HEALTH__PORT": str(names.HEALTH_PORT),
        "SIDECAR_HEALTH__METRICS": "true" if settings.metrics else "false",
        "SIDECAR_LIMITS__DRAIN_DELAY_MS": str(settings.drain_s * 1000),
        "SIDECAR_LIMITS__DRAIN_TIMEOUT_MS": str(max(1, grace_s - settings.drain_s - SETTLE_S) * 1000),
    }
    if options.mode == "redirect":
        values["SIDECAR_UPSTREAM__ORIGINAL_DESTINATION"] = "true"
        if numbers is not None:
            values["SIDECAR_UPSTREAM__PORTS"] = _json(list(numbers))
    else:
        assert numbers, "there is no named-port mode without ports"
        urls = [f"http://127.0.0.1:{number}" for number in numbers]
        values["SIDECAR_UPSTREAM__URL"] = urls[0]
        further = [{"port": names.PROXY_PORT + at, "upstream": url} for at, url in enumerate(urls[1:], start=1)]
        if further:
            values["SIDECAR_LISTENERS"] = _json(further)
    if options.exclude_paths:
        values["SIDECAR_FREE_PATHS"] = _json(list(options.exclude_paths))
    if checks:
        values["SIDECAR_HEALTH__APPLICATION__CHECKS"] = _json(checks)
    environment: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    if checks:
        source = {"fieldRef": {"fieldPath": "status.podIP"}}
        environment.append({"name": "SIDECAR_HEALTH__APPLICATION__HOST", "valueFrom": source})
    return environment


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": names.HEALTH_PORT}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}


def _resources(settings: InjectionSettings) -> dict[str, dict[str, str]]:
    limits = {"cpu": settings.cpu_limit, "memory": settings.memory_limit}
    made = {"requests": {"cpu": settings.cpu_request, "memory": settings.memory_request}}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {**made, "limits": given} if given else made


def _restricted(capabilities: list[str]) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **({"add": capabilities} if capabilities else {})},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
