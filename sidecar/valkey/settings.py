"""Sections ``valkey…``: where the ledger is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from sidecar.config.fields import FilePath, Model, check_pair
from sidecar.valkey.url import Cluster, Embedded, Sentinel, Standalone, Topology, parse_valkey_url


def _topology(value: object) -> Topology:
    if isinstance(value, Embedded | Standalone | Sentinel | Cluster):
        return value
    if not isinstance(value, str):
        raise ValueError("should be a URL like valkey://host:6379/0")
    return parse_valkey_url(value)


ValkeyUrl = Annotated[Topology, PlainValidator(_topology, json_schema_input_type=str), PlainSerializer(str)]


class ValkeyTlsSettings(Model):
    """TLS towards Valkey, for the schemes that use it."""

    verify: bool = Field(default=True, description="Check the server's certificate and name.")
    ca_file: FilePath | None = Field(
        default=None, description="PEM file with the authorities. Without it the system's authorities count."
    )
    certificate_file: FilePath | None = Field(default=None, description="PEM file with the gateway's own certificate.")
    key_file: FilePath | None = Field(default=None, description="PEM file with the private key of that certificate.")

    @model_validator(mode="after")
    def _pair_is_complete(self) -> ValkeyTlsSettings:
        check_pair(self.certificate_file, self.key_file)
        return self


class ValkeyEmbeddedSettings(Model):
    """The server that ``embedded:///directory`` starts."""

    appendfsync: Literal["always", "everysec", "no"] = Field(
        default="everysec",
        description="How often the server writes to the disk. A crash of the machine loses nothing with `always`, one "
        "second with `everysec`, and the data that the kernel has not written with `no`. A crash of the "
        "gateway loses nothing.",
    )
