"""A kubelet's probes and hooks of an application that stands behind the sidecar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sidecar.kubernetes import names
from sidecar.kubernetes.pod_fields import InjectionRefused, mapping, mappings, port_number, seconds, text

PROBES: Final = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
HOOKS: Final = {"postStart": "poststart", "preStop": "prestop"}
HOOK_TIMEOUT_MS: Final = 30_000
_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc")


def name_to_number(container: dict[str, Any], path: str, renamed: dict[str, int]) -> None:
    """Probes and hooks that name a port which was renamed get its number: they go to the application as before."""
    for handler, where in _handlers(container, path):
        for kind in _HANDLERS:
            target = handler.get(kind)
            if isinstance(target, dict) and isinstance(target.get("port"), str) and target["port"] in renamed:
                target["port"] = renamed[target["port"]]
            elif target is not None:
                mapping(target, f"{where}.{kind}")


def through_the_sidecar(
    container: dict[str, Any], path: str, ports: dict[str, int], is_redirected: Callable[[int], bool]
) -> dict[str, dict[str, Any]]:
    """Probes and hooks of redirected ports ask the sidecar's health port instead, which asks the application.

    Returns:
        The checks that the sidecar makes for them, by name (``health.application.checks``).

    Args:
        ports: the container's own, by name.
        is_redirected: whether a port of the pod leads to the sidecar.
    """
    checks: dict[str, dict[str, Any]] = {}
    for handler, where in _handlers(container, path):
        kind = next((each for each in _HANDLERS if handler.get(each) is not None), None)
        if kind is None:
            continue
        target = mapping(handler[kind], f"{where}.{kind}")
        if target.get("host"):  # somebody else is asked
            continue
        port = _port_of(target.get("port"), f"{where}.{kind}.port", ports)
        if not is_redirected(port):
            continue
        field = where.rpartition(".")[2]
        if field in HOOKS and kind != "httpGet":  # Kubernetes does nothing for it
            continue
        check = f"{container['name']}/{PROBES.get(field) or HOOKS[field]}"
        limit_ms = HOOK_TIMEOUT_MS
        if field in PROBES:
            # A little less than the kubelet waits, so that it hears what was wrong.
            limit_ms = max(1, seconds(handler.get("timeoutSeconds"), f"{where}.timeoutSeconds", 1)) * 900
        checks[check] = {**_check(kind, target, port, f"{where}.{kind}"), "timeout_ms": limit_ms}
        for each in _HANDLERS:
            handler.pop(each, None)
        handler["httpGet"] = {"path": f"/app/{check}", "port": names.HEALTH_PORT}
    return checks


def _handlers(container: dict[str, Any], path: str) -> list[tuple[dict[str, Any], str]]:
    found = [
        (mapping(container.get(name), f"{path}.{name}"), f"{path}.{name}") for name in PROBES if container.get(name)
    ]
    lifecycle = mapping(container.get("lifecycle"), f"{path}.lifecycle")
    for name in HOOKS:
        if lifecycle.get(name):
            where = f"{path}.lifecycle.{name}"
            found.append((mapping(lifecycle[name], where), where))
    return found


def _port_of(port: Any, path: str, ports: dict[str, int]) -> int:
    if isinstance(port, str):
        if port not in ports:
            raise InjectionRefused(f"{path}: the container declares no port {port!r}")
        return ports[port]
    return port_number(port, path)


def _check(kind: str, target: dict[str, Any], port: int, path: str) -> dict[str, Any]:
    if kind == "tcpSocket":
        return {"tcp_socket": {"port": port}}
    if kind == "grpc":
        service = target.get("service")
        return {"grpc": {"port": port, **({"service": text(service, f"{path}.service")} if service else {})}}
    get: dict[str, Any] = {"port": port}
    if target.get("path"):
        get["path"] = text(target["path"], f"{path}.path")
    if target.get("scheme"):
        get["scheme"] = text(target["scheme"], f"{path}.scheme")
    headers: dict[str, str] = {}
    for number, header in enumerate(mappings(target.get("httpHeaders"), f"{path}.httpHeaders")):
        name = text(header.get("name"), f"{path}.httpHeaders[{number}].name")
        value = header.get("value") or ""
        if not isinstance(value, str):
            raise InjectionRefused(f"{path}.httpHeaders[{number}].value should be text")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if headers:
        get["headers"] = headers
    return {"http_get": get}
