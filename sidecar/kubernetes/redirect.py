"""Rules that lead a pod's incoming connections to the gateway, for nftables and for iptables.

Only what comes from outside is led there: the gateway's own connections to the application, and all others within the
pod, come in through ``lo`` and are left alone, so nothing goes round in circles. The kernel keeps where a client wanted
to go, and the gateway asks it (``sidecar.gateway.destinations``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

TABLE: Final = "quota_sidecar"
CHAIN: Final = "QUOTA_SIDECAR"
PORTS_MAX: Final = 64

Family = Literal["ip", "ip6"]


class RedirectError(ValueError):
    """Ports that cannot be redirected; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """``ports``: None for all but the excluded. ``to``: where the gateway listens, on all addresses."""

    ports: tuple[int, ...] | None
    to: int
    exclude: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.ports is not None and self.to in self.ports:
            raise RedirectError(f"{self.to} is the gateway's own port: it cannot be redirected to itself")
        both = sorted(set(self.ports or ()) & set(self.exclude))
        if both:
            raise RedirectError(f"{_joined(both)} is to be redirected and excluded")

    @property
    def left_alone(self) -> tuple[int, ...]:
        """Ports that need a rule of their own to stay as they are. The gateway's is among them: who connects to it
        directly wanted to go nowhere else, and is refused."""
        return tuple(sorted({*self.exclude, self.to})) if self.ports is None else ()


def parse_ports(text: str) -> tuple[int, ...] | None:
    """``8080,8081``, or ``*`` for all (None).

    Raises:
        RedirectError: an entry is no port, is there twice, or there are too many.
    """
    if text.strip() == "*":
        return None
    ports: list[int] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        if not (part.isascii() and part.isdecimal() and len(part) <= 5 and 1 <= int(part) <= 65_535):
            raise RedirectError(f"{part[:20]!r} is not a port: 1 to 65535")
        if int(part) in ports:
            raise RedirectError(f"{part} is named twice")
        ports.append(int(part))
    if len(ports) > PORTS_MAX:
        raise RedirectError(f"{len(ports)} ports are too many: {PORTS_MAX} at most")
    return tuple(ports)


def nft_rules(redirect: Redirect, families: Sequence[Family]) -> str:
    """Input for ``nft -f``. One transaction; what an earlier run left is replaced."""
    return "".join(_nft_table(redirect, family) for family in families)


def nft_removal(families: Sequence[Family]) -> str:
    """The input that takes them away, whether they are there or not."""
    return "".join(f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in families)


def _nft_table(redirect: Redirect, family: Family) -> str:
    rules = ['iifname "lo" return']
    if redirect.ports is None:
        rules.append(f"tcp dport {{ {_joined(redirect.left_alone)} }} return")
        rules.append(f"meta l4proto tcp redirect to :{redirect.to}")
    else:
        rules.append(f"tcp dport {{ {_joined(redirect.ports)} }} redirect to :{redirect.to}")
    lines = "".join(f"    {rule}\n" for rule in rules)
    return (
        f"{nft_removal([family])}table {family} {TABLE} {{\n  chain prerouting {{\n"
        f"    type nat hook prerouting priority -100; policy accept;\n{lines}  }}\n}}\n"
    )


def iptables_rules(redirect: Redirect) -> str:
    """Input for ``iptables-restore --noflush`` and its twin for IPv6: fills a chain of our own anew. A jump there from
    PREROUTING makes it count (`JUMP`)."""
    rules = ["-i lo -j RETURN", *(f"-p tcp --dport {port} -j RETURN" for port in redirect.left_alone)]
    to = f"-j REDIRECT --to-ports {redirect.to}"
    rules += [f"-p tcp {to}"] if redirect.ports is None else [f"-p tcp --dport {port} {to}" for port in redirect.ports]
    lines = "".join(f"-A {CHAIN} {rule}\n" for rule in rules)
    return f"*nat\n:{CHAIN} - [0:0]\n{lines}COMMIT\n"


JUMP: Final = ("PREROUTING", "-p", "tcp", "-j", CHAIN)


def _joined(ports: Sequence[int]) -> str:
    return ", ".join(map(str, ports))
