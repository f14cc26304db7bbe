"""Who calls: the resolvers in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from sidecar.identity.types import Fields, Outcome, Peer, Resolver, Unidentified


class IdentityChain:
    """Asks each resolver in turn; the first that finds a credential of its kind decides.

    A bad credential is not rescued by a later resolver: else a caller could try many at once, and a mistake
    in one would show as success under another name.
    """

    def __init__(
        self,
        resolvers: Sequence[Resolver],
        *,
        removed: Collection[bytes] = (),
        removed_from_untrusted_peers: Collection[bytes] = (),
    ) -> None:
        """``removed``: fields added to ``consumes``, which no resolver checks. ``removed_from_untrusted_peers``: fields
        added to ``spoofable`` whether or not a resolver reads them."""
        assert resolvers, "without a resolver no caller can be identified"
        self.resolvers = tuple(resolvers)
        self.reads: frozenset[bytes] = frozenset().union(*(r.reads for r in resolvers))
        """Fields that ``identify`` wants to see."""
        self.consumes: frozenset[bytes] = frozenset(removed).union(*(r.consumes for r in resolvers))
        """Fields that are not forwarded, whoever sent them."""
        self.spoofable: frozenset[bytes] = frozenset(removed_from_untrusted_peers).union(
            *(r.spoofable for r in resolvers)
        )
        """Fields that are not forwarded when the peer is not trusted."""
        self._nothing_shown = _nothing_shown(resolvers)

    def identify(self, fields: Fields, peer: Peer) -> Outcome | asyncio.Future[Outcome]:
        """Answer at once if that needs no I/O, else a future, which raises ``IdentityUnavailable``."""
        for resolver in self.resolvers:
            outcome = resolver.resolve(fields, peer)
            if outcome is not None:
                return outcome
        return self._nothing_shown

    @property
    def refused_lookups(self) -> int:
        """Credentials that were not looked up because too many others were."""
        return sum(resolver.refused_lookups for resolver in self.resolvers)

    async def start(self) -> None:
        """Start the resolvers; when one cannot, close what has started. Raises ``IdentitySetupError``."""
        for count, resolver in enumerate(self.resolvers):
            try:
                await resolver.start()
            except BaseException:  # a cancelled start must not leave connections behind either
                await _close(self.resolvers[: count + 1])
                raise

    async def close(self) -> None:
        """Close the resolvers, last one first."""
        await _close(self.resolvers)

    def __repr__(self) -> str:
        return f"IdentityChain({', '.join(r.name for r in self.resolvers)})"


async def _close(resolvers: Sequence[Resolver]) -> None:
    for resolver in reversed(resolvers):
        await resolver.close()


def _nothing_shown(resolvers: Sequence[Resolver]) -> Unidentified:
    """RFC 9110 section 11.6.1: a 401 lists at least one challenge, and may list one for each scheme."""
    wanted = list(dict.fromkeys(r.asks_for for r in resolvers if r.asks_for))
    challenges = dict.fromkeys(r.challenge for r in resolvers if r.asks_for)
    reason = "the request has no credential that the gateway accepts" + (
        f"; send {' or '.join(wanted)}" if wanted else ""
    )
    return Unidentified(reason, ", ".join(challenges or dict.fromkeys(r.challenge for r in resolvers)))
