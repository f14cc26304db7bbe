"""From a pod to the pod with the sidecar. One pure function; `sidecar inject` and the admission webhook both use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sidecar import __version__
from sidecar.kubernetes import container as made
from sidecar.kubernetes import names
from sidecar.kubernetes.injection_options import InjectionOptions, InjectionSettings, injection_options
from sidecar.kubernetes.pod_fields import InjectionRefused, mapping, mappings, plain, seconds, text, texts
from sidecar.kubernetes.ports import Chosen, choose, declared_ports, take_over
from sidecar.kubernetes.probes import name_to_number, through_the_sidecar

__all__ = ["Injection", "InjectionRefused", "InjectionSettings", "inject", "wanted"]


@dataclass(frozen=True, slots=True)
class Injection:
    """``pod`` has the sidecar; it is what came if nothing was ``changed``. ``warnings`` are sentences for people."""

    pod: dict[str, Any]
    changed: bool
    warnings: tuple[str, ...] = ()


def wanted(metadata: Mapping[str, Any], namespace_labels: Mapping[str, str], default: bool = False) -> bool:
    """Whether a pod is to have the sidecar: what it says itself, else what its namespace says, else ``default``.

    Raises:
        InjectionRefused: the label's value is neither "true" nor "false", or label and annotation differ.
    """
    own = {
        (metadata.get(kind) or {}).get(names.INJECT)
        for kind in ("labels", "annotations")
        if isinstance(metadata.get(kind) or {}, Mapping)
    } - {None}
    if len(own) > 1:
        raise InjectionRefused(f"label and annotation {names.INJECT} say different things")
    for value in (*own, namespace_labels.get(names.INJECT)):
        if value in ("true", "false"):
            return bool(value == "true")
        if value is not None:
            raise InjectionRefused(f'{names.INJECT} should be "true" or "false", not {str(value)[:60]!r}')
    return default


def inject(pod: Mapping[str, Any], settings: InjectionSettings, *, job: bool = False) -> Injection:
    """Adds the sidecar to a pod, or to a pod template.

    Args:
        pod: a mapping with ``metadata`` and ``spec``; it is not changed.
        settings: what sidecars are like unless the pod's annotations say otherwise.
        job: the pod belongs to a Job, so it has to come to an end.

    Raises:
        InjectionRefused: this pod cannot have one, or is malformed.
    """
    result = mapping(plain(pod), "the pod")
    metadata = mapping(result.get("metadata"), "metadata")
    spec = mapping(result.get("spec"), "spec")
    annotations = texts(metadata.get("annotations"), "metadata.annotations")
    labels = texts(metadata.get("labels"), "metadata.labels")
    containers = _containers(spec, "containers")
    if not containers:
        raise InjectionRefused("spec.containers names no container")
    first = _containers(spec, "initContainers")
    if _is_injected(annotations, [*first, *containers]):
        return Injection(result, changed=False)
    ends = job or spec.get("restartPolicy") in ("Never", "OnFailure")
    options = injection_options(annotations, settings)
    warnings = []
    if options.mode == "named-port" and options.settings.native and not settings.native_ports and not ends:
        if names.NATIVE in annotations:
            warnings.append(
                f'{names.NATIVE} is "true": Services of Kubernetes before 1.33 do not find the named ports of native '
                "sidecars, and have no endpoint"
            )
        else:
            options = replace(options, settings=replace(options.settings, native=False))
    _check_possible(spec, [*first, *containers], options, ends=ends)
    declared = declared_ports(containers, "spec.containers")
    declared_ports(first, "spec.initContainers")  # one of the sidecar's own ports may not be there either
    chosen = choose(declared, options)
    grace_s = seconds(
        spec.get("terminationGracePeriodSeconds"), "spec.terminationGracePeriodSeconds", made.GRACE_S_DEFAULT
    )
    warnings += _take_hooks(containers, chosen)
    if grace_s < options.settings.drain_s + made.SETTLE_S:
        warnings.append(
            f"terminationGracePeriodSeconds is {grace_s}: too short for {options.settings.drain_s} s in which new "
            "clients are still served; requests may be cut off when the pod ends"
        )
    if options.mode == "redirect":
        ports: list[dict[str, Any]] = []
        checks = _redirected_probes(containers, first, chosen, options, warnings)
    else:
        ports, checks = _named_ports(containers, first, chosen), {}
    container = made.sidecar(options, ports, chosen.numbers, checks, grace_s)
    if options.mode == "redirect":
        first.append(made.redirect(options, chosen.numbers))
    (first if options.settings.native else containers).append(container)
    if first:
        spec["initContainers"] = first
    spec["containers"] = containers
    spec["volumes"] = [*mappings(spec.get("volumes"), "spec.volumes"), *made.volumes(options.settings)]
    metadata["labels"] = {**labels, names.INJECTED: "true"}
    metadata["annotations"] = {**annotations, names.STATUS: _status(options, chosen)}
    result["metadata"], result["spec"] = metadata, spec
    return Injection(result, changed=True, warnings=tuple(warnings))


def _containers(spec: dict[str, Any], field: str) -> list[dict[str, Any]]:
    found = mappings(spec.get(field), f"spec.{field}")
    for number, each in enumerate(found):
        text(each.get("name"), f"spec.{field}[{number}].name")
    return found


def _is_injected(annotations: dict[str, str], containers: list[dict[str, Any]]) -> bool:
    """Whether the sidecar is there already. Half of it is somebody's mistake, which is not made worse."""
    has_status = names.STATUS in annotations
    has_container = any(each["name"] == names.CONTAINER for each in containers)
    if has_status and not has_container:
        raise InjectionRefused(
            f"the annotation {names.STATUS} says that the pod has a sidecar, but it has none: remove the annotation"
        )
    if has_container and not has_status:
        raise InjectionRefused(
            f"there is a container {names.CONTAINER} which was not injected: rename it, or opt out with "
            f'{names.INJECT}: "false"'
        )
    return has_status


def _check_possible(
    spec: dict[str, Any], containers: list[dict[str, Any]], options: InjectionOptions, *, ends: bool
) -> None:
    if spec.get("hostNetwork") is True:
        raise InjectionRefused(
            "hostNetwork is true: the sidecar's ports, and its redirection, would be those of the whole node; opt out "
            f'with {names.INJECT}: "false", or do without hostNetwork'
        )
    if mapping(spec.get("os"), "spec.os").get("name") == "windows":
        raise InjectionRefused("the pod is for Windows: the sidecar runs on Linux")
    if ends and not options.settings.native:
        raise InjectionRefused(
            "the pod ends by itself, and a sidecar that is a plain container would keep it running: Kubernetes "
            f'1.29 has native ones ({names.NATIVE}: "true")'
        )
    if any(each["name"] == names.REDIRECT_CONTAINER for each in containers):
        raise InjectionRefused(f"there is a container {names.REDIRECT_CONTAINER} which was not injected: rename it")
    for number, volume in enumerate(mappings(spec.get("volumes"), "spec.volumes")):
        name = text(volume.get("name"), f"spec.volumes[{number}].name")
        if name in names.VOLUMES:
            raise InjectionRefused(f"there is a volume {name} already: rename it")


def _named_ports(containers: list[dict[str, Any]], first: list[dict[str, Any]], chosen: Chosen) -> list[dict[str, Any]]:
    """Takes the ports over by name; returns the sidecar's entries."""
    taken = {
        str(entry.get("name"))
        for each in [*containers, *first]
        for entry in mappings(each.get("ports"), f"ports of {each['name']}")
    } | {names.HEALTH_PORT_NAME}
    for index, each in enumerate(containers):
        renamed = {port.name: port.number for port in chosen.declared if port.container == each["name"] and port.name}
        name_to_number(each, f"spec.containers[{index}]", renamed)
    return take_over(chosen.declared, taken)


def _redirected_probes(
    containers: list[dict[str, Any]],
    first: list[dict[str, Any]],
    chosen: Chosen,
    options: InjectionOptions,
    warnings: list[str],
) -> dict[str, dict[str, Any]]:
    def is_redirected(port: int) -> bool:
        if chosen.numbers is None:
            return port not in options.exclude_ports and port not in names.RESERVED_PORTS
        return port in chosen.numbers

    checks: dict[str, dict[str, Any]] = {}
    if options.keep_probes:
        warnings.append(f"{names.PROBES} is keep: probes of redirected ports are refused by the sidecar as anybody is")
        return checks
    # Init containers have probes only if they are native sidecars of somebody else, which may serve a port as well.
    for field, group in (("containers", containers), ("initContainers", first)):
        for index, each in enumerate(group):
            declared = declared_ports([each], f"spec.{field}[{index}]")
            ports = {port.name: port.number for port in declared if port.name is not None}
            checks |= through_the_sidecar(each, f"spec.{field}[{index}]", ports, is_redirected)
    return checks


def _take_hooks(containers: list[dict[str, Any]], chosen: Chosen) -> list[str]:
    """An application is told to end when its sidecar has drained: its preStop hook waits for that."""
    warnings = []
    serving = {port.container for port in chosen.declared}
    if chosen.numbers is not None and len(chosen.declared) < len(chosen.numbers):
        serving = {each["name"] for each in containers}  # who serves a port that is not declared is not known
    for index, each in enumerate(containers):
        if each["name"] not in serving:
            continue
        lifecycle = mapping(each.get("lifecycle"), f"spec.containers[{index}].lifecycle")
        if lifecycle.get("preStop"):
            warnings.append(
                f"container {each['name']} has a preStop hook of its own, so it does not wait for the sidecar to "
                "drain: it should go on serving for some seconds after it was told to end"
            )
        else:
            get = {"path": "/drained", "port": names.HEALTH_PORT}
            each["lifecycle"] = {**lifecycle, "preStop": {"httpGet": get}}
    return warnings


def _status(options: InjectionOptions, chosen: Chosen) -> str:
    if chosen.numbers is None:
        ports: dict[str, int] = {"*": names.PROXY_PORT}
    else:
        step = 0 if options.mode == "redirect" else 1
        ports = {str(number): names.PROXY_PORT + at * step for at, number in enumerate(chosen.numbers)}
    status = {
        "version": __version__, "mode": options.mode, "ports": ports,
        "native": options.settings.native, "image": options.settings.image,
    }  # fmt: skip
    return json.dumps(status, separators=(",", ":"))
