"""The issuer's keys as they are now: read again in time, and kept while their source is out of reach."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from sidecar.basics.logger import get_logger
from sidecar.identity.jwks import KeySet, KeySetError, SigningKey, parse_key_set
from sidecar.identity.jwks_source import KeySource
from sidecar.identity.single_flight import SingleFlight
from sidecar.identity.types import IdentitySetupError, IdentityUnavailable

log = get_logger(__name__)

_ONLY: Final = "the key set"  # there is one thing to fetch


class KeyRing:
    """A key set and its source.

    A reading happens when the keys are older than ``ttl_s`` or a token names a key that is not there, and
    never sooner than ``cool_down_s`` after the one before: invented key ids must not turn the gateway on the
    issuer. The first caller after the ``ttl_s`` waits for the reading, so that a withdrawn key ends in time
    even if calls are rare; once a reading has failed nobody who brings a known key waits again, until
    ``max_stale_s`` have passed.

    ``readings`` and ``failures`` count for the metrics; ``withdrawals`` grows whenever a key is gone.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        ttl_s: float,
        cool_down_s: float,
        max_stale_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.readings = 0
        self.failures = 0
        self.withdrawals = 0
        self._source = source
        self._ttl_s = ttl_s
        self._cool_down_s = cool_down_s
        self._max_stale_s = math.inf if max_stale_s is None else max_stale_s
        self._clock = clock
        self._keys: KeySet | None = None
        self._read_at_s = -math.inf
        self._next_read_at_s = -math.inf
        self._failing = False
        self._flight: SingleFlight[str, None] = SingleFlight()

    def ready(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """Answer the key if it may be used without waiting for a reading."""
        age_s = self._clock() - self._read_at_s
        if age_s >= self._ttl_s:
            if not self._failing or age_s >= self._max_stale_s:
                return None
            if self.may_read():
                self._flight.begin(_ONLY, self._read)
        return self._find(key_id, algorithm)

    def may_read(self) -> bool:
        """Tell whether a reading may begin. It may be under way already: the cool-down begins when it ends."""
        return self._clock() >= self._next_read_at_s

    @property
    def failing(self) -> bool:
        """Whether the last reading failed, so that a key that is not here may exist nevertheless."""
        return self._failing

    async def read_for(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """Wait for a reading, then answer the key, None if there is no such key.

        Raises ``IdentityUnavailable`` if the reading failed and no key from before may stand in.
        """
        try:
            await self._flight.join(_ONLY, self._read)
        except IdentityUnavailable:
            key = self._find(key_id, algorithm)
            if key is None or self._clock() - self._read_at_s >= self._max_stale_s:
                raise
            return key
        return self._find(key_id, algorithm)

    def _find(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        return None if self._keys is None else self._keys.find(key_id, algorithm)

    async def _read(self) -> None:
        self.readings += 1
        try:
            keys = parse_key_set(await self._source.fetch())
        except KeySetError as error:
            self.failures += 1
            if not self._failing:
                log.warning("cannot read the jwks", source=self._source.description, reason=str(error))
            self._failing = True
            raise IdentityUnavailable("the gateway cannot read the issuer's keys") from error
        else:
            if self._failing:
                log.info("the jwks can be read again", source=self._source.description, keys=len(keys.keys))
            self._failing = False
            if self._keys is not None and keys.lacks_any_of(self._keys):
                self.withdrawals += 1
            self._keys = keys
            self._read_at_s = self._clock()
        finally:
            self._next_read_at_s = self._clock() + self._cool_down_s

    async def start(self) -> None:
        """Read the keys once. An issuer out of reach delays nobody but its tokens; a bad file is a mistake.

        Raises ``IdentitySetupError``.
        """
        await self._source.open()
        try:
            await self._flight.join(_ONLY, self._read)
        except IdentityUnavailable as error:
            if self._source.must_work_at_start:
                raise IdentitySetupError(
                    f"identity jwt: jwks_file {self._source.description}: {error.__cause__}"
                ) from None

    async def close(self) -> None:
        """End a reading under way and close the source."""
        await self._flight.close()
        await self._source.close()

    def __repr__(self) -> str:
        count = 0 if self._keys is None else len(self._keys.keys)
        return f"KeyRing({self._source!r}, {count} keys{', failing' if self._failing else ''})"
