"""Builds the compiled core (``*.pyx``) into the wheel. It is optional: without a C compiler the wheel is pure Python, does
the same and costs more CPU.

``SIDECAR_BUILD_CORE`` says how much it is wanted: ``auto`` (the default: pure Python where it cannot be built), ``require``
(an error instead) or ``skip``.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = ("sidecar/proxy/_scan.pyx",)
MODES = ("auto", "require", "skip")


class CoreBuildHook(BuildHookInterface):
    """Hatchling's hook: compiles for the interpreter that builds, and tags the wheel for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("SIDECAR_BUILD_CORE", "auto")
        if mode not in MODES:
            raise ValueError(f"SIDECAR_BUILD_CORE is {mode!r}; it can be {', '.join(MODES)}")
        root = Path(self.root)
        built = {source: _target(root / source) for source in MODULES}
        for path in built.values():
            path.unlink(missing_ok=True)  # one that is older than its source would be used without a word
        if mode == "skip" or self.target_name != "wheel":
            return
        try:
            _compile(root, built)
        except Exception as error:  # whatever hinders a compiler, pure Python does
            if mode == "require":
                raise
            self.app.display_warning(f"the compiled core was left out, the wheel is pure Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for source, path in built.items():
            build_data["force_include"][str(path)] = str(Path(source).with_name(path.name))


def _target(source: Path) -> Path:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return source.with_name(source.stem + suffix)


def _compile(root: Path, built: dict[str, Path]) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    flags = [] if sys.platform == "win32" else ["-O3", "-fno-strict-aliasing", "-Wno-unreachable-code"]
    with tempfile.TemporaryDirectory() as directory:
        for source, path in built.items():
            name = source.removesuffix(".pyx").replace("/", ".")
            extension = Extension(name, [str(root / source)], extra_compile_args=flags)
            modules = cythonize([extension], build_dir=directory, quiet=True, force=True)
            distribution = Distribution({"name": "core", "ext_modules": modules})
            command = build_ext(distribution)
            command.build_lib = command.build_temp = directory
            command.ensure_finalized()
            command.run()
            path.write_bytes(Path(command.get_ext_fullpath(name)).read_bytes())
            path.chmod(0o755)


