"""Checkpoints: what the ledger knows of every origin's chain at an instant, signed with Ed25519 (RFC 8032). No I/O."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FORMAT: Final = 1
CHECKPOINT_BYTES_MAX: Final = 67_108_864


class CheckpointError(ValueError):
    """A key or a checkpoint cannot be used. The message says why."""


@dataclass(frozen=True, slots=True)
class OriginMark:
    """``origin``: `<instance>.<home partition>`. ``number``: of its last batch. ``chain``: its chain value."""

    origin: str
    number: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class PartitionMark:
    """``waiting``: entries in the outbox; ``outbox`` and ``sent``: the last ids of the two streams."""

    partition: int
    generation: str
    waiting: int
    outbox: str
    sent: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``before``: SHA-256 of the checkpoint before it, in hex, or ""."""

    at_ms: int
    before: str
    partitions: Sequence[PartitionMark]
    origins: Sequence[OriginMark]

    def to_text(self) -> bytes:
        return orjson.dumps({
            "format": FORMAT, "at_ms": self.at_ms, "before": self.before,
            "partitions": [[p.partition, p.generation, p.waiting, p.outbox, p.sent] for p in self.partitions],
            "origins": [[o.origin, o.number, o.chain.hex()] for o in self.origins],
        })  # fmt: skip

    @classmethod
    def from_text(cls, text: bytes) -> Checkpoint:
        """Raises :class:`CheckpointError`."""
        try:
            row = orjson.loads(text)
            if row["format"] != FORMAT:
                raise CheckpointError(f"a checkpoint of format {row['format']}; this release has {FORMAT}")
            partitions = [PartitionMark(int(n), str(g), int(w), str(o), str(s)) for n, g, w, o, s in row["partitions"]]
            origins = [OriginMark(str(o), int(n), bytes.fromhex(c)) for o, n, c in row["origins"]]
            return cls(int(row["at_ms"]), str(row["before"]), partitions, origins)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"not a checkpoint: {error!r}"[:200]) from None


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> tuple[bytes, str]:
    """The signed checkpoint as a file has it, and the SHA-256 of its text in hex."""
    text = checkpoint.to_text()
    row: dict[str, Any] = {"signed": text.decode(), "signature": base64.b64encode(key.sign(text)).decode()}
    return orjson.dumps(row) + b"\n", hashlib.sha256(text).hexdigest()


def opened(signed: bytes, key: Ed25519PublicKey | None) -> tuple[Checkpoint, str]:
    """The checkpoint and its SHA-256. ``key`` None: the signature is not looked at.

    Raises:
        CheckpointError: it is none, or was not signed with this key.
    """
    try:
        row = orjson.loads(signed)
        text, signature = row["signed"].encode(), base64.b64decode(row["signature"], validate=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"not a signed checkpoint: {error!r}"[:200]) from None
    if key is not None:
        try:
            key.verify(signature, text)
        except InvalidSignature:
            raise CheckpointError(
                "its signature is not that of this key: it was changed, or signed by another"
            ) from None
    return Checkpoint.from_text(text), hashlib.sha256(text).hexdigest()


def private_key(pem: bytes) -> Ed25519PrivateKey:
    """Out of PEM, PKCS#8, without a password. Raises :class:`CheckpointError`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CheckpointError("is not a private key in PEM (PKCS#8) without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointError("is not an Ed25519 key")
    return key


def public_key(pem: bytes) -> Ed25519PublicKey:
    """Out of PEM. Raises :class:`CheckpointError`."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CheckpointError("is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise CheckpointError("is not an Ed25519 key")
    return key


def new_key_pair() -> tuple[bytes, bytes]:
    """Private and public key in PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public
