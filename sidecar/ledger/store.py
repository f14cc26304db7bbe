"""Valkey for the control plane: the embedded server if there is one, a client, the accounts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sidecar.basics.errors import SetupError
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.valkey.embedded import Durability, EmbeddedError, EmbeddedValkey
from sidecar.valkey.topology import Client, TopologyError, connected
from sidecar.valkey.url import Embedded, Topology


@dataclass(frozen=True, slots=True)
class Store:
    """A client, the key names and the accounts of one ledger; the embedded server, if there is one, with its counters
    (``embedded.counters``)."""

    client: Client
    keys: Keys
    accounts: AccountLoader
    embedded: EmbeddedValkey | None = None


@asynccontextmanager
async def open_store(topology: Topology, keys: Keys, appendfsync: Durability = "everysec") -> AsyncIterator[Store]:
    """A store; an embedded server, if this starts it with ``appendfsync``, runs for as long as it is open.

    Raises:
        SetupError: the embedded server cannot be started, or TLS files cannot be used.
    """
    embedded = EmbeddedValkey(topology, appendfsync=appendfsync) if isinstance(topology, Embedded) else None
    try:
        if embedded is not None:
            await embedded.start()
        async with connected(topology) as client:
            yield Store(client, keys, AccountLoader(client, keys), embedded)
    except (EmbeddedError, TopologyError) as error:
        raise SetupError(str(error)) from None
    finally:
        if embedded is not None:
            await embedded.stop()
