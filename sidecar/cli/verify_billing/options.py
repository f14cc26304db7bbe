"""What the options of the command come to: a run's settings, and the configuration of its gateway."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from pydantic import SecretStr

from sidecar.app.configuration import Config, load_config
from sidecar.cli.verify_billing.names import OTHER_SCHEME, SCHEMES, Names

LOOPBACK: Final = "127.0.0.1"
UNITS: Final = (1, 10)
"""What a call of a route may use."""

INTERVAL_S: Final = 2
"""Between two sweeps over the run's customers: how long a change in Lago takes to be seen without a webhook."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """A key, or the file that has it."""

    lago_key: SecretStr | None = None
    lago_key_file: Path | None = None
    openmeter_token: SecretStr | None = None
    openmeter_token_file: Path | None = None
    webhook_hmac_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """``valkey``: None for an embedded one. ``webhook_url``: where Lago reaches this process, port 0 for any free one;
    None for no webhooks. ``timeout_s``: how long a scenario waits for something to become true.
    ``requests_per_second``: to Lago, whose cloud allows 50. ``only``: names of scenarios; none for all of them.
    """

    lago: str
    openmeter: str
    names: Names
    secrets: Secrets = field(repr=False)
    valkey: str | None = None
    webhook_url: str | None = None
    ca_file: Path | None = None
    timeout_s: float = 60.0
    keep: bool = False
    requests_per_second: float = 40.0
    only: tuple[str, ...] = ()

    def config(self, directory: str, upstream: str) -> Config:
        """The configuration of the gateway and the control plane. ``directory``: for an embedded Valkey.

        Raises:
            ConfigError: an option has a value that the configuration does not take.
        """
        return _loaded(self.document(directory, upstream))

    def document(self, directory: str, upstream: str) -> dict[str, Any]:
        """As a configuration file would have it."""
        given, metric = self.secrets, self.names.metric
        routes = [{"path": path_of(units), "metric": metric, "units": units} for units in UNITS]
        routes += [
            {"path": filtered_path(scheme), "metric": self.names.filtered_metric(scheme), "units": 1}
            for scheme in (*SCHEMES, OTHER_SCHEME)
        ]
        ca = {"ca_file": str(self.ca_file)} if self.ca_file else {}
        return {
            "listen": {"host": LOOPBACK, "port": 0},
            "upstream": {"url": upstream},
            "valkey": self.valkey or f"embedded://{directory}/valkey",
            "ledger": {"prefix": self.names.ledger, "unknown_account_wait_ms": 10_000},
            "identity": [{"type": "trusted_header", "header": "X-TPP-Id"}],
            "trusted_peers": [f"{LOOPBACK}/32"],
            "routes": routes,
            "default_route": "deny",
            "metering": {
                "url": self.openmeter,
                "type": self.names.event_type,
                **_secret("token", given.openmeter_token, given.openmeter_token_file),
                **(ca if self.openmeter.startswith("https:") else {}),
            },
            "lago": {
                "url": self.lago,
                "requests_per_second": self.requests_per_second,
                **_secret("api_key", given.lago_key, given.lago_key_file),
                **(ca if self.lago.startswith("https:") else {}),
                "billable_metrics": self._billable_metrics(),
                "webhooks": self._webhooks(),
                "reconcile": {"interval_s": INTERVAL_S},
                "sync": {"settle_s": 0},
            },
            "admin": self._admin(),
            "log": {"access": "off", "format": "console", "level": "warning"},
        }

    def _billable_metrics(self) -> list[dict[str, Any]]:
        names = self.names
        return [
            {
                "metric": names.filtered_metric(scheme),
                "code": names.filtered_code,
                "properties": {"scheme": scheme, "method": "POST"},
            }
            for scheme in SCHEMES
        ]

    def _webhooks(self) -> dict[str, Any]:
        if self.webhook_url is None:
            return {}
        hmac_key_file = self.secrets.webhook_hmac_key_file
        return {"hmac_key_file": str(hmac_key_file)} if hmac_key_file else {"jwt": True}

    def _admin(self) -> dict[str, Any]:
        """Webhooks come to the port of their URL, from wherever Lago is."""
        if self.webhook_url is None:
            return {"host": LOOPBACK, "port": 0}
        parts = urlsplit(self.webhook_url)
        port = parts.port if parts.port is not None else 443 if parts.scheme == "https" else 80
        is_local = parts.hostname in (LOOPBACK, "localhost")
        return {"host": LOOPBACK if is_local else "0.0.0.0", "port": port, "token": secrets.token_hex(16)}  # noqa: S104


def path_of(units: int) -> str:
    """The path of the route that uses so many units."""
    return f"/verify/units-{units}"


def filtered_path(scheme: str) -> str:
    """The path of the payments of a scheme."""
    return f"/verify/payments/{scheme}"


def _secret(name: str, value: SecretStr | None, file: Path | None) -> dict[str, str]:
    if value is not None:
        return {name: value.get_secret_value()}
    return {f"{name}_file": str(file)} if file is not None else {}


def _loaded(document: dict[str, Any]) -> Config:
    with tempfile.NamedTemporaryFile("wb", suffix=".yaml", prefix="sidecar-verify-") as file:
        file.write(orjson.dumps(document))  # JSON is YAML
        file.flush()
        return load_config(Path(file.name), {})
