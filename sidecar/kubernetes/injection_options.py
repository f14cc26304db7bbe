"""How a pod wants its sidecar: annotations over an injector's settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Literal

from sidecar import __version__
from sidecar.config.path_template import parse_template
from sidecar.kubernetes import names
from sidecar.kubernetes.pod_fields import InjectionRefused
from sidecar.kubernetes.redirect import RedirectError, parse_ports

Mode = Literal["named-port", "redirect"]

DRAIN_S_MAX: Final = 300
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS: Final = {
    "m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip
_OBJECT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """What sidecars are like unless a pod says otherwise.

    Attributes:
        native: as an init container that goes on running (Kubernetes 1.29 and newer).
        native_ports: Services find the named ports of such containers (Kubernetes 1.33 and newer). Without, pods in
            named-port mode have a plain container, but for those that end by themselves.
        config_map, secret: in the pod's namespace; the first has the key ``gateway.yaml``.
        cpu_request, memory_request, cpu_limit, memory_limit: Kubernetes' quantities.
        drain_s: how long new clients are still served when the pod has been told to end.
        metrics: whether the health port has them.
    """

    image: str = f"ghcr.io/openova/quota-sidecar:{__version__}"
    image_pull_policy: str = "IfNotPresent"
    native: bool = True
    native_ports: bool = True
    config_map: str = "quota-sidecar"
    secret: str = "quota-sidecar"  # noqa: S105  # an object's name
    cpu_request: str = "100m"
    memory_request: str = "96Mi"
    cpu_limit: str | None = None
    memory_limit: str | None = "256Mi"
    drain_s: int = 5
    metrics: bool = True


@dataclass(frozen=True, slots=True)
class InjectionOptions:
    """What one pod gets.

    Attributes:
        ports: names or numbers of the application's ports; None: to be found; "*" alone: all.
        exclude_ports, exclude_paths: what the sidecar leaves alone.
        keep_probes: probes stay as they are.
    """

    settings: InjectionSettings
    mode: Mode = "named-port"
    ports: tuple[str, ...] | None = None
    exclude_ports: tuple[int, ...] = ()
    exclude_paths: tuple[str, ...] = ()
    keep_probes: bool = False


def injection_options(annotations: Mapping[str, str], settings: InjectionSettings) -> InjectionOptions:
    """Reads the annotations of a pod.

    Raises:
        InjectionRefused: one is unknown, or its value cannot be used.
    """
    for name in annotations:
        if name.startswith(names.PREFIX) and name not in (*names.ANNOTATIONS, names.INJECT, names.STATUS):
            near = difflib.get_close_matches(name, names.ANNOTATIONS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names.ANNOTATIONS)}"
            raise InjectionRefused(f"the annotation {name} is not known; {hint}")
    read = _AnnotationReader(annotations)
    mode = read.one_of(names.MODE, ("named-port", "redirect"), "named-port")
    made = replace(
        settings,
        image=read.matching(names.IMAGE, _IMAGE, settings.image, "the name of an image"),
        image_pull_policy=read.one_of(names.IMAGE_PULL_POLICY, _PULL_POLICIES, settings.image_pull_policy),
        native=read.flag(names.NATIVE, settings.native),
        config_map=read.matching(names.CONFIG, _OBJECT_NAME, settings.config_map, "the name of a ConfigMap"),
        secret=read.matching(names.SECRET, _OBJECT_NAME, settings.secret, "the name of a Secret"),
        cpu_request=read.quantity(names.CPU_REQUEST, settings.cpu_request) or settings.cpu_request,
        memory_request=read.quantity(names.MEMORY_REQUEST, settings.memory_request) or settings.memory_request,
        cpu_limit=read.quantity(names.CPU_LIMIT, settings.cpu_limit),
        memory_limit=read.quantity(names.MEMORY_LIMIT, settings.memory_limit),
        drain_s=read.whole(names.DRAIN_SECONDS, settings.drain_s, DRAIN_S_MAX),
        metrics=read.flag(names.METRICS, settings.metrics),
    )
    _check_resources(made)
    options = InjectionOptions(
        settings=made,
        mode="redirect" if mode == "redirect" else "named-port",
        ports=read.list(names.PORTS),
        exclude_ports=read.ports(names.EXCLUDE_PORTS),
        exclude_paths=read.paths(names.EXCLUDE_PATHS),
        keep_probes=read.one_of(names.PROBES, ("rewrite", "keep"), "rewrite") == "keep",
    )
    if options.exclude_ports and options.mode != "redirect":
        raise InjectionRefused(
            f"{names.EXCLUDE_PORTS} has a meaning in redirect mode only: in named-port mode no port is touched but "
            f"those that {names.PORTS} names"
        )
    return options


def amount_of(quantity: str) -> Decimal | None:
    """What a quantity of Kubernetes comes to; None if it is none."""
    found = _QUANTITY.fullmatch(quantity)
    return Decimal(found[1]) * _FACTORS[found[2] or ""] if found else None


def _check_resources(settings: InjectionSettings) -> None:
    for what, request, limit in (
        ("cpu", settings.cpu_request, settings.cpu_limit),
        ("memory", settings.memory_request, settings.memory_limit),
    ):
        asked, most = amount_of(request), amount_of(limit) if limit is not None else None
        if asked is not None and most is not None and asked > most:
            raise InjectionRefused(f"the sidecar's {what} request of {request} is above its limit of {limit}")


class _AnnotationReader:
    """Reads one annotation after the other; each method raises `InjectionRefused`."""

    def __init__(self, annotations: Mapping[str, str]) -> None:
        self._annotations = annotations

    def one_of(self, name: str, values: tuple[str, ...], default: str) -> str:
        value = self._annotations.get(name, default)
        if value not in values:
            raise InjectionRefused(f"{name} should be {' or '.join(values)}, not {value[:60]!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        return self.one_of(name, ("true", "false"), "true" if default else "false") == "true"

    def matching(self, name: str, pattern: re.Pattern[str], default: str, what: str) -> str:
        value = self._annotations.get(name, default)
        if pattern.fullmatch(value) is None:
            raise InjectionRefused(f"{name} should be {what}, not {value[:60]!r}")
        return value

    def quantity(self, name: str, default: str | None) -> str | None:
        value = self._annotations.get(name, default)
        if value is not None and not amount_of(value):
            raise InjectionRefused(f"{name} should be a quantity like 100m or 128Mi, not {value[:60]!r}")
        return value

    def whole(self, name: str, default: int, most: int) -> int:
        value = self._annotations.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdecimal() and len(value) < 6 and int(value) <= most):
            raise InjectionRefused(f"{name} should be a whole number up to {most}, not {value[:60]!r}")
        return int(value)

    def list(self, name: str) -> tuple[str, ...] | None:
        value = self._annotations.get(name)
        if value is None:
            return None
        entries = tuple(filter(None, (each.strip() for each in value.split(","))))
        if not entries:
            raise InjectionRefused(f"{name} names nothing")
        if len(set(entries)) != len(entries):
            raise InjectionRefused(f"{name} names something twice: {value[:200]!r}")
        return entries

    def ports(self, name: str) -> tuple[int, ...]:
        try:
            found = parse_ports(self._annotations.get(name, ""))
        except RedirectError as error:
            raise InjectionRefused(f"{name}: {error}") from None
        if found is None:
            raise InjectionRefused(f"{name} cannot be *: the sidecar would serve no port")
        return found

    def paths(self, name: str) -> tuple[str, ...]:
        found = self.list(name) if name in self._annotations else ()
        for path in found or ():
            try:
                parse_template(path)
            except ValueError as error:
                raise InjectionRefused(f"{name}: {path[:200]!r} {error}") from None
        return found or ()
