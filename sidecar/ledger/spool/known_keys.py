"""Idempotency keys under which this process saw a call charged. They tell a repeat while the ledger is away."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Final

from sidecar.ledger.client.outcomes import IdempotencyKey

KEYS_MAX: Final = 10_000
"""Keys that are known. Beyond that the one goes that was charged first: its repeats are charged."""


class KnownKeys:
    """``ttl_s``: how long a key counts after its call was charged."""

    def __init__(self, ttl_s: float, keys_max: int = KEYS_MAX) -> None:
        self._ttl_s = ttl_s
        self._keys_max = keys_max
        self._charged: OrderedDict[bytes, tuple[bytes, float, int]] = OrderedDict()
        """Digest to fingerprint, end, and free repeats."""

    def __len__(self) -> int:
        return len(self._charged)

    def charged(self, key: IdempotencyKey) -> None:
        """A call under this key was charged. Of several calls under one key, the first one counts."""
        now = monotonic()
        known = self._charged.get(key.digest)
        if known is not None and known[1] > now:
            return
        self._charged.pop(key.digest, None)
        self._charged[key.digest] = (key.fingerprint, now + self._ttl_s, 0)
        if len(self._charged) > self._keys_max:
            self._charged.popitem(last=False)

    def repeated(self, key: IdempotencyKey) -> None:
        """The ledger says that this call is a free repeat."""
        known = self._charged.get(key.digest)
        if known is not None and known[0] == key.fingerprint:
            self._charged[key.digest] = (known[0], known[1], known[2] + 1)

    def take_repeat(self, key: IdempotencyKey) -> bool:
        """Whether a call under this key is a free repeat. If so, it counts as one."""
        known = self._charged.get(key.digest)
        if known is None or known[1] <= monotonic() or known[0] != key.fingerprint or known[2] >= key.repeats_max:
            return False
        self.repeated(key)
        return True
