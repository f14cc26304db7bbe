"""Which of a pod's ports are the API, and how the sidecar takes them over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.kubernetes import names
from sidecar.kubernetes.injection_options import InjectionOptions
from sidecar.kubernetes.pod_fields import InjectionRefused, mappings, port_number, text

_NAME_LENGTH_MAX: Final = 15  # IANA_SVC_NAME (RFC 6335 section 5.1), which Kubernetes asks of a port's name
_SERVICE_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9](?:[a-z0-9]|-(?!-)){0,13}[a-z0-9]|[a-z]")


@dataclass(frozen=True, slots=True)
class DeclaredPort:
    """A TCP port that a container declares. ``entry`` is the pod's own mapping, which may be changed in place."""

    container: str
    name: str | None
    number: int
    entry: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} ({self.number}, container {self.container})"


@dataclass(frozen=True, slots=True)
class Chosen:
    """``declared``: those that are declared among the ports; ``numbers``: all of them, None for every port there is."""

    declared: tuple[DeclaredPort, ...]
    numbers: tuple[int, ...] | None


def declared_ports(containers: Sequence[dict[str, Any]], path: str) -> list[DeclaredPort]:
    """The TCP ports of containers, in order. Other protocols are none of ours.

    Raises:
        InjectionRefused: an entry is malformed, or a port lies where the sidecar has its own.
    """
    found = []
    for index, container in enumerate(containers):
        here = f"{path}[{index}].ports"
        for number, entry in enumerate(mappings(container.get("ports"), here)):
            where = f"{here}[{number}]"
            port = port_number(entry.get("containerPort"), f"{where}.containerPort")
            name = text(entry["name"], f"{where}.name") if entry.get("name") is not None else None
            if entry.get("protocol", "TCP") != "TCP":
                continue
            if port in names.RESERVED_PORTS:
                raise InjectionRefused(
                    f"{where}: {port} is one of the sidecar's own ports ({names.PROXY_PORT} to {names.ADMIN_PORT}); "
                    "let the application listen on another"
                )
            found.append(DeclaredPort(container["name"], name, port, entry))
    return found


def choose(declared: Sequence[DeclaredPort], options: InjectionOptions) -> Chosen:
    """The ports that are the API.

    Raises:
        InjectionRefused: there is none, more than one could be meant, or the mode cannot take one over.
    """
    if options.ports is not None and "*" in options.ports:
        if options.mode != "redirect" or len(options.ports) > 1:
            raise InjectionRefused(f"{names.PORTS}: * stands for all ports, alone, and in redirect mode only")
        return Chosen(tuple(port for port in declared if port.number not in options.exclude_ports), None)
    if options.ports is None:
        left = [port for port in declared if port.number not in options.exclude_ports]
        chosen: list[DeclaredPort | int] = [_found(left or declared)]
    else:
        chosen = [_named(each, declared, options) for each in options.ports]
    numbers = tuple(port if isinstance(port, int) else port.number for port in chosen)
    if len(set(numbers)) != len(numbers):
        raise InjectionRefused(f"{names.PORTS} names a port twice, by its name and by its number")
    if len(numbers) > names.PROXY_PORTS_MAX:
        raise InjectionRefused(
            f"{names.PORTS} names {len(numbers)} ports; at most {names.PROXY_PORTS_MAX} are possible"
        )
    both = sorted(set(numbers) & set(options.exclude_ports))
    if both:
        raise InjectionRefused(f"{names.EXCLUDE_PORTS}: {both[0]} is also one of the API's ports")
    ports = tuple(port for port in chosen if isinstance(port, DeclaredPort))
    if options.mode == "named-port":
        for port in ports:
            if port.name is None:
                raise InjectionRefused(
                    f"port {port.number} of container {port.container} has no name, so no Service can follow it to the "
                    f"sidecar: name it, and let the Service's targetPort be that name, or set {names.MODE}: redirect"
                )
    return Chosen(ports, numbers)


def _found(declared: Sequence[DeclaredPort]) -> DeclaredPort:
    if len(declared) == 1:
        return declared[0]
    if not declared:
        raise InjectionRefused(
            "no container declares a TCP port, so it is not known which is the API: declare it under ports, or name it "
            f"with the annotation {names.PORTS} in redirect mode"
        )
    named = [port for port in declared if port.name == "http"]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(map(str, declared))
    raise InjectionRefused(f"several ports could be the API: {listed}; name it with the annotation {names.PORTS}")


def _named(wanted: str, declared: Sequence[DeclaredPort], options: InjectionOptions) -> DeclaredPort | int:
    by_number = wanted.isascii() and wanted.isdecimal()
    if by_number and not 1 <= int(wanted[:6]) <= 65_535:
        raise InjectionRefused(f"{names.PORTS}: {wanted[:20]} is not a port from 1 to 65535")
    if by_number and int(wanted) in names.RESERVED_PORTS:
        raise InjectionRefused(f"{names.PORTS}: {wanted} is one of the sidecar's own ports")
    found = [port for port in declared if (port.number == int(wanted) if by_number else port.name == wanted)]
    if len(found) > 1:
        raise InjectionRefused(f"{names.PORTS}: {wanted[:60]} is declared more than once: {', '.join(map(str, found))}")
    if found:
        return found[0]
    if by_number and options.mode == "redirect":
        return int(wanted)
    listed = ", ".join(map(str, declared)) or "none"
    raise InjectionRefused(f"{names.PORTS}: there is no TCP port {wanted[:60]!r}; declared are {listed}")


def take_over(ports: Sequence[DeclaredPort], taken: set[str]) -> list[dict[str, Any]]:
    """Renames the application's ports and returns the sidecar's in their place, in order.

    A Service that follows a port by its name then leads to the sidecar; a port of the node that was mapped to it too.

    Args:
        taken: names of all ports of the pod; grows by the new ones.
    """
    made = []
    for offset, port in enumerate(ports):
        assert port.name is not None, "it was asked for when the ports were chosen"
        entry: dict[str, Any] = {"name": port.name, "containerPort": names.PROXY_PORT + offset, "protocol": "TCP"}
        for key in ("hostPort", "hostIP"):
            if key in port.entry:
                entry[key] = port.entry.pop(key)
        port.entry["name"] = renamed = _free_name(port.name, taken)
        taken.add(renamed)
        made.append(entry)
    return made


def _free_name(name: str, taken: set[str]) -> str:
    candidates = [f"app-{name}"[:_NAME_LENGTH_MAX].rstrip("-"), *(f"app-{number}" for number in range(1, 1000))]
    return next(each for each in candidates if each not in taken and _SERVICE_NAME.fullmatch(each))
