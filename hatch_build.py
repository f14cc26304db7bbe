"""Compiles the request path into the wheel.

Two things are compiled: the scanner of heads (``*.pyx``, by Cython), which has its twin in pure Python; and the modules
through which every request passes, by mypyc, from the very sources that run where nothing is compiled. An editable
installation gets the scanner alone, since a compiled module would hide the source that somebody edits.

The outcome depends on the sources and on the versions in ``build-system.requires``, not on what else is installed:
mypyc looks at no other package's types. Only without a C compiler or Python's headers is the wheel pure Python, which
does the same at about twice the CPU; ``sidecar --version`` says which one it is. Any other failure fails the build.

``QUOTA_SIDECAR_BUILD_CORE`` says how much it is wanted: ``auto`` (the default, as above), ``require`` (no compiler is
an error, too) or ``skip``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCANNER = "sidecar/gateway/http1/_scan.pyx"
REQUEST_PATH = (
    "sidecar/gateway/relay.py",
    "sidecar/gateway/client.py",
    "sidecar/gateway/admission/body_budget.py",
    "sidecar/gateway/admission/places.py",
    "sidecar/gateway/admission/free_rates.py",
    "sidecar/gateway/admission/peer_keys.py",
    "sidecar/gateway/context.py",
    "sidecar/gateway/exchange/exchange.py",
    "sidecar/gateway/exchange/charging.py",
    "sidecar/gateway/exchange/request.py",
    "sidecar/gateway/exchange/answer.py",
    "sidecar/gateway/exchange/messages.py",
    "sidecar/gateway/exchange/tunnel.py",
    "sidecar/gateway/exchange/access_log.py",
    "sidecar/gateway/exchange/marks.py",
    "sidecar/gateway/exchange/credit_fields.py",
    "sidecar/gateway/idempotency.py",
    "sidecar/gateway/connection.py",
    "sidecar/gateway/upstream.py",
    "sidecar/gateway/counters.py",
    "sidecar/gateway/methods.py",
    "sidecar/gateway/interaction_id.py",
    "sidecar/gateway/trace_context.py",
    "sidecar/gateway/gateway.py",
    "sidecar/gateway/routes.py",
    "sidecar/gateway/parameters.py",
    "sidecar/gateway/http1/framing.py",
    "sidecar/gateway/http1/fields.py",
    "sidecar/gateway/http1/heads.py",
    "sidecar/gateway/http1/limits.py",
    "sidecar/valkey/command.py",
    "sidecar/ledger/client/account_views.py",
    "sidecar/ledger/client/link_settings.py",
    "sidecar/ledger/client/batch_gathering.py",
    "sidecar/ledger/client/batch_replies.py",
    "sidecar/ledger/client/link.py",
    "sidecar/ledger/client/batch.py",
    "sidecar/ledger/client/outcomes.py",
    "sidecar/ledger/client/ledger_client.py",
    "sidecar/identity/chain.py",
    "sidecar/identity/api_key.py",
    "sidecar/identity/cache.py",
    "sidecar/identity/lookup_turns.py",
    "sidecar/identity/types.py",
)
MODES = ("auto", "require", "skip")


class CoreBuildHook(BuildHookInterface):
    """Hatchling's hook: compiles for the interpreter that builds, and tags the wheel for it."""

    def initialize(self, kind: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("QUOTA_SIDECAR_BUILD_CORE", "auto")
        if mode not in MODES:
            raise ValueError(f"QUOTA_SIDECAR_BUILD_CORE is {mode!r}; it can be {', '.join(MODES)}")
        editable = kind == "editable"
        if editable:  # what is older than its source would be used without a word
            Path(self.root, SCANNER).with_suffix(sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)
        if mode == "skip" or self.target_name != "wheel":
            return
        missing = _missing()
        if missing and mode == "auto":
            self.app.display_warning(f"{missing}: the wheel is pure Python, at about twice the CPU for a request")
            return
        if missing:
            raise RuntimeError(f"{missing}, and QUOTA_SIDECAR_BUILD_CORE is require")
        try:
            built = _built(Path(self.root), whole=not editable)
        except SystemExit as error:  # mypyc has printed what is wrong, and exits
            raise RuntimeError(
                "the request path could not be compiled, see above; QUOTA_SIDECAR_BUILD_CORE=skip builds pure Python"
            ) from error
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for name, path in built.items():
            if editable:
                Path(self.root, name).write_bytes(path.read_bytes())
            else:
                build_data["force_include"][str(path)] = name


def _missing() -> str:
    """What a compiler would need and this machine lacks; empty if nothing."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if sys.platform != "win32" and shutil.which(os.environ.get("CC", compiler).split()[0]) is None:
        return "there is no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed"
    return ""


def _built(root: Path, *, whole: bool) -> dict[str, Path]:
    """Where the compiled modules are, by their place in the wheel.

    pip builds a wheel twice, the first time for its metadata. What the same sources gave is used again.
    """
    directory = root / "build" / "core"
    out = directory / _fingerprint(root, whole=whole)
    if not (out / "complete").is_file():
        shutil.rmtree(directory, ignore_errors=True)
        _compile(root, out, whole=whole)
        (out / "complete").touch()
    return {str(path.relative_to(out)): path for path in out.rglob("*") if path.suffix in (".so", ".pyd")}


def _fingerprint(root: Path, *, whole: bool) -> str:
    versions = [sys.version, *(f"{name} {version(name)}" for name in ("cython", "mypy", "setuptools"))]
    digest = hashlib.sha256(repr((versions, whole, os.environ.get("CC"), os.environ.get("CFLAGS"))).encode())
    for path in [root / "hatch_build.py", *sorted((root / "sidecar").rglob("*.py*"))]:
        if path.suffix in (".py", ".pyx"):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _compile(root: Path, out: Path, *, whole: bool) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    flags = [] if sys.platform == "win32" else ["-O3", "-fno-strict-aliasing", "-Wno-unreachable-code"]
    before = Path.cwd()
    os.chdir(root)  # mypyc names modules by their paths from here
    try:
        with tempfile.TemporaryDirectory() as directory:
            name = SCANNER.removesuffix(".pyx").replace("/", ".")
            extensions = cythonize(
                [Extension(name, [SCANNER], extra_compile_args=flags)], build_dir=directory, quiet=True, force=True
            )
            if whole:
                from mypyc.build import mypycify

                options = [
                    "--strict", "--no-site-packages", "--ignore-missing-imports", "--config-file=",
                    "--allow-untyped-decorators", "--allow-any-unimported", "--allow-subclassing-any",
                ]  # fmt: skip
                lax = [f"--disable-error-code={code}" for code in ("unused-ignore", "misc", "no-any-return")]
                extensions += mypycify(
                    [*options, *lax, *REQUEST_PATH], opt_level="2", group_name="sidecar_core", target_dir=directory
                )
            command = build_ext(Distribution({"name": "core", "ext_modules": extensions}))
            command.build_lib, command.build_temp = str(out), directory
            command.ensure_finalized()
            command.run()
    finally:
        os.chdir(before)
