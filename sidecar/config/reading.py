"""From a file and the environment to a ``Config``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sidecar.app.configuration import Config
from sidecar.config.document import BYTES_MAX, Node, compose
from sidecar.config.environment import overlay
from sidecar.config.errors import ConfigError, Origin, Problem
from sidecar.config.secret_files import with_secrets
from sidecar.config.validation import validate_texts
from sidecar.valkey.url import Credentials, Embedded, Sentinel, Tls, Topology

__all__ = ["ConfigError", "load_config", "read_document"]


def load_config(path: Path | None, environ: Mapping[str, str], *, gateway: bool = False) -> Config:
    """Read the file (None: the environment alone), lay ``SIDECAR_…`` variables over it, read secrets from their files.

    The ``valkey`` of the answer is complete: with its password and TLS files, wherever they were set. ``gateway``: it
    is for a data plane, which needs to know where its API is.

    Raises:
        ConfigError: everything that is wrong, each with file and line, or with the variable's name.
    """
    root = Node(Origin("environment"), {}) if path is None else read_document(path)
    root = overlay(root, environ)
    root = with_secrets(Config, root)
    config = validate_texts(Config, root, lambda origin: origin.line is None)
    if gateway and config.upstream.url is None and not config.upstream.original_destination:
        above = root.child("upstream") or root
        raise ConfigError([Problem(above.origin, "upstream.url", "is missing: a gateway needs it")])
    return config.model_copy(update={"valkey": _complete(config)})


def read_document(path: Path, *, bytes_max: int = BYTES_MAX) -> Node:
    """Read a YAML file into a tree.

    Raises:
        ConfigError: it cannot be read, or is no YAML within the limits.
    """
    source = str(path)
    try:
        # A pipe (/dev/stdin, process substitution) has no size to ask for, hence one byte more than is allowed.
        with open(os.fspath(path), "rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError([Problem(Origin(source), "", error.strerror or "cannot be read")]) from None
    except ValueError:
        raise ConfigError([Problem(Origin(repr(source)), "", "is not a file's name")]) from None
    return compose(raw, source, bytes_max=bytes_max)


def _complete(config: Config) -> Topology:
    topology = config.valkey
    if isinstance(topology, Embedded):
        return topology
    if config.valkey_password is not None:
        password = config.valkey_password.get_secret_value()
        topology = replace(topology, credentials=replace(topology.credentials, password=password))
    if topology.tls is not None:
        files = config.valkey_tls
        topology = replace(topology, tls=Tls(files.ca_file, files.certificate_file, files.key_file, files.verify))
    if isinstance(topology, Sentinel) and (config.valkey_sentinel_username or config.valkey_sentinel_password):
        secret = config.valkey_sentinel_password
        login = Credentials(config.valkey_sentinel_username, secret.get_secret_value() if secret else None)
        topology = replace(topology, sentinel_credentials=login)
    return topology
