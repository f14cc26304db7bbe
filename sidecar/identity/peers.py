"""From which peers identity headers are accepted."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

UNIX: Final = "unix"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Connections come from few peers, and a scan from many addresses must not fill the memory.
_REMEMBERED_MAX = 4096


def parse_network(text: str) -> Network:
    """Read a network in CIDR form or a single address.

    Raises ``ValueError`` that names the entry, also when bits are set outside of the mask: ``10.1.2.3/8`` may
    be a mistake for ``10.1.2.3/32``, and to trust sixteen million hosts by mistake is worse than to refuse.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither {UNIX!r} nor a network like 10.0.0.0/8 or fd00::/8: {error}") from None


class TrustedPeers:
    """Networks, and ``"unix"`` for clients on a Unix socket. Empty: nobody, not even loopback."""

    def __init__(self, entries: Sequence[str] = ()) -> None:
        """Raises ``ValueError`` that names the bad entry."""
        self._unix = UNIX in entries
        self._networks = tuple(parse_network(entry) for entry in entries if entry != UNIX)
        self._remembered: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Tell whether ``address`` ("" for a Unix socket) is in the list; what is no address is not."""
        known = self._remembered.get(address)
        if known is not None:
            return known
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        verdict = self._remembered[address] = self._decide(address)
        return verdict

    def _decide(self, address: str) -> bool:
        if address == "":
            return self._unix
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # a dual-stack socket shows IPv4 peers as ::ffff:192.0.2.1
        return any(ip in network for network in self._networks)

    def __repr__(self) -> str:
        entries = [str(network) for network in self._networks] + [UNIX] * self._unix
        return f"TrustedPeers({', '.join(entries)})"
