"""Sections ``admin``, ``audit``, ``log``, ``credit_headers``: how the gateway is watched, and what it tells callers."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, model_validator

from sidecar.config.fields import FilePath, Host, Model, Port, Whole, conflict

ADMIN_PORTS: Final = {"run": 9090, "control": 9091}
"""Where each command's admin side listens if `admin.port` is not set. One machine runs both with one file."""
TOKEN_LENGTH_MIN = 16
_TOKEN = re.compile(rf"[!-~]{{{TOKEN_LENGTH_MIN},1024}}")


def is_loopback(host: str) -> bool:
    """Whether nobody outside of this machine (of this pod) can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AdminSettings(Model):
    """Health, metrics and the state of accounts, on a port of their own."""

    host: Host = Field(
        default="127.0.0.1", description="Address to listen on. If it is not a loopback address, a token is required."
    )
    port: Port | None = Field(
        default=None,
        description=f"TCP port; 0 takes a free one; null: {ADMIN_PORTS['run']} for `sidecar run`, "
        f"{ADMIN_PORTS['control']} for `sidecar control`.",
    )
    token: SecretStr | None = Field(
        default=None,
        description=f"Bearer token for all but `/livez` and `/readyz`, with at least {TOKEN_LENGTH_MIN} characters.",
    )
    token_file: FilePath | None = Field(default=None, description="File with the token.")

    @model_validator(mode="after")
    def _not_open_to_all(self) -> AdminSettings:
        if self.token is None and self.token_file is None and not is_loopback(self.host):
            raise conflict([("token", f"is needed (or token_file): {self.host} is not a loopback address")])
        if self.token is not None and _TOKEN.fullmatch(self.token.get_secret_value()) is None:
            message = f"should be {TOKEN_LENGTH_MIN} or more visible ASCII characters: it is sent in a header"
            raise conflict([("token", message)])
        return self

    @property
    def listening_port(self) -> int:
        """`load_config` fills in what the command has by default; elsewhere it is the gateway's."""
        return ADMIN_PORTS["run"] if self.port is None else self.port


class ProofSettings(Model):
    """Proof for auditors."""

    signing_key_file: FilePath | None = Field(
        default=None,
        description="PEM file (PKCS#8) with an Ed25519 key (`sidecar audit key` makes one). With it and an archive, "
        "the control plane signs a checkpoint of all chains every hour.",
    )
    checkpoint_interval_s: Annotated[Whole, Field(ge=60, le=86_400)] = Field(
        default=3_600, description="Seconds between two checkpoints."
    )


class LogSettings(Model):
    """Lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of lines that are written."
    )
    format: Literal["json", "console"] = Field(
        default="json", description="`json`: one object in each line. `console`: text for people."
    )
    access: Literal["off", "errors", "all"] = Field(
        default="errors",
        description="Requests that get a line. `off`: none. `errors`: those that are refused or answered with 5xx. "
        "`all`: all.",
    )
    lines_max: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="With `access: errors`, lines of one status and reason for one client in ten seconds (of twenty "
        "clients at most). A line says how many more there were. 0: all lines.",
    )
