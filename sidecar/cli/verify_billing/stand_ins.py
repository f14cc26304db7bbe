"""Stand-ins of Lago and OpenMeter on loopback, for a run without either."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace

from pydantic import SecretStr

from sidecar.cli.verify_billing.options import Options, Secrets
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server

KEY_BYTES = 16


@contextlib.asynccontextmanager
async def stand_ins(options: Options) -> AsyncIterator[Options]:
    """The options of a run against them; webhooks reach it."""
    key = secrets.token_hex(KEY_BYTES)
    lago, openmeter = Server(Lago(LagoConfig(api_key=key)).app()), Server(OpenMeter(OpenMeterConfig(meters=())).app())
    async with lago, openmeter:
        yield replace(
            options,
            lago=lago.url,
            openmeter=openmeter.url,
            secrets=Secrets(lago_key=SecretStr(key)),
            webhook_url="http://127.0.0.1:0/webhooks/lago",
            requests_per_second=1_000.0,
        )
