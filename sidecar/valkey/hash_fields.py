"""Fields of a hash in Valkey, written together."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.valkey.topology import Client


async def set_fields(client: Client, key: str, fields: Mapping[str, str]) -> None:
    """Write all of them in one step. Raises what redis-py raises."""
    if fields:
        await client.execute_command("HSET", key, *(part for pair in fields.items() for part in pair))
