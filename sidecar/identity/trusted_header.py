"""Identity from a header that a trusted gateway sets, by default ``X-TPP-Id``."""

from __future__ import annotations

from sidecar.identity.account_id import is_account_id
from sidecar.identity.field_names import lower, spellings
from sidecar.identity.settings import TrustedHeaderSettings
from sidecar.identity.types import Fields, Outcome, Peer, Unidentified, identified


class TrustedHeaderResolver:
    """Accepts the header from a trusted peer and ignores it from any other.

    The value is an account id, nothing else: a list, a blank or an empty value is refused and not repaired.
    """

    name = "trusted_header"
    refused_lookups = 0

    def __init__(self, settings: TrustedHeaderSettings, *, realm: str) -> None:
        self._field = lower(settings.header)
        self.reads = frozenset({self._field})
        self.consumes = frozenset() if settings.forward else self.reads
        self.spoofable = spellings(self._field)
        self.challenge = f'TrustedGateway realm="{realm}"'
        self.asks_for = ""
        self._refusal = Unidentified(f"the value of {settings.header} is not an account id", self.challenge)

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | None:
        """See ``Resolver.resolve``."""
        if not peer.trusted:
            return None
        value = fields.get(self._field)
        if value is None:
            return None
        account = value.decode("latin-1")
        return identified(account, self.name) if is_account_id(account) else self._refusal

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def __repr__(self) -> str:
        return f"TrustedHeaderResolver({self._field.decode()})"
