"""Compiles the request path into the wheel, which is optional: without a C compiler the wheel is pure Python, does the
same and costs about twice the CPU.

Two things are compiled: the scanner of heads (``*.pyx``, by Cython), which has its twin in pure Python; and the modules
through which every request passes, by mypyc, from the very sources that run where nothing is compiled. An editable
installation gets the scanner alone, since a compiled module would hide the source that somebody edits.

``QUOTA_SIDECAR_BUILD_CORE`` says how much it is wanted: ``auto`` (the default: pure Python where it cannot be built),
``require`` (an error instead) or ``skip``.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCANNER = "sidecar/gateway/http1/_scan.pyx"
REQUEST_PATH = (
    "sidecar/gateway/relay.py",
    "sidecar/gateway/client.py",
    "sidecar/gateway/context.py",
    "sidecar/gateway/exchange/exchange.py",
    "sidecar/gateway/exchange/charging.py",
    "sidecar/gateway/exchange/messages.py",
    "sidecar/gateway/exchange/tunnel.py",
    "sidecar/gateway/exchange/access_log.py",
    "sidecar/gateway/exchange/credit_fields.py",
    "sidecar/gateway/connection.py",
    "sidecar/gateway/upstream.py",
    "sidecar/gateway/counters.py",
    "sidecar/gateway/gateway.py",
    "sidecar/gateway/routes.py",
    "sidecar/gateway/parameters.py",
    "sidecar/gateway/http1/framing.py",
    "sidecar/gateway/http1/fields.py",
    "sidecar/gateway/http1/heads.py",
    "sidecar/gateway/http1/limits.py",
    "sidecar/valkey/command.py",
    "sidecar/ledger/client/link.py",
    "sidecar/ledger/client/batch.py",
    "sidecar/ledger/client/outcomes.py",
    "sidecar/ledger/client/ledger_client.py",
    "sidecar/identity/chain.py",
    "sidecar/identity/api_key.py",
    "sidecar/identity/cache.py",
    "sidecar/identity/types.py",
)
MODES = ("auto", "require", "skip")


class CoreBuildHook(BuildHookInterface):
    """Hatchling's hook: compiles for the interpreter that builds, and tags the wheel for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("QUOTA_SIDECAR_BUILD_CORE", "auto")
        if mode not in MODES:
            raise ValueError(f"QUOTA_SIDECAR_BUILD_CORE is {mode!r}; it can be {', '.join(MODES)}")
        editable = version == "editable"
        if editable:  # what is older than its source would be used without a word
            Path(self.root, SCANNER).with_suffix(sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)
        if mode == "skip" or self.target_name != "wheel":
            return
        try:
            built = _compile(Path(self.root), Path(self.directory) / "core", whole=not editable)
        except (Exception, SystemExit) as error:  # whatever hinders a compiler (mypyc exits), pure Python does
            if mode == "require":
                raise
            self.app.display_warning(f"the compiled core was left out, the wheel is pure Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for name, path in built.items():
            if editable:
                Path(self.root, name).write_bytes(path.read_bytes())
            else:
                build_data["force_include"][str(path)] = name


def _compile(root: Path, out: Path, *, whole: bool) -> dict[str, Path]:
    """Where the built modules lie, by their place in the wheel."""
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

                options = ["--strict", "--ignore-missing-imports", "--config-file=", "--allow-untyped-decorators"]
                lax = [f"--disable-error-code={code}" for code in ("unused-ignore", "misc", "no-any-return")]
                extensions += mypycify(
                    [*options, *lax, *REQUEST_PATH], opt_level="2", group_name="sidecar_core", target_dir=directory
                )
            command = build_ext(Distribution({"name": "core", "ext_modules": extensions}))
            command.build_lib, command.build_temp = str(out), directory
            command.ensure_finalized()
            command.run()
            return {str(Path(path).relative_to(out)): Path(path) for path in command.get_outputs()}
    finally:
        os.chdir(before)
