"""The command line: what may be said, and what is misuse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from loadtests.scenarios.target import NO_SECRET, CannotRun, Secret

ACCOUNTS_PATH = "/open-banking/v3.1/aisp/accounts"
SECONDS_MAX, USERS_MAX = 86_400, 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. ``keys``: pairs of account ("" unknown) and API key."""

    scenario: str
    urls: tuple[str, ...] = ()
    users: int = 20
    seconds: float = 20.0
    report: Path | None = None
    json: Path | None = None
    keys: tuple[tuple[str, Secret], ...] = field(default=(), repr=False)
    paths: tuple[str, ...] = (ACCOUNTS_PATH,)
    units: int = 1
    admin: str = ""
    admin_token: Secret = NO_SECRET
    valkey: Secret = NO_SECRET
    openmeter: str = ""
    openmeter_token: Secret = NO_SECRET
    meters: tuple[str, ...] = ("api_calls",)
    lago: str = ""
    lago_key: Secret = NO_SECRET
    disrupt: str = ""
    restore: str = ""
    lasts_s: float = 3.0
    paid: int | None = None
    credits: str = "5.0"
    echo: str = ""
    blob: str = ""
    body_mb: int = 8
    limit_s: float = 60.0
    pids: tuple[int, ...] = ()
    settle_timeout_s: float = 30.0
    appendfsync: str = "always"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CannotRun(message)


def parser(names: Sequence[str], explained: str = "") -> argparse.ArgumentParser:
    """``explained``: what the scenarios are, for ``--help``."""
    made = _Parser(
        prog="python -m loadtests.scenarios", usage="%(prog)s NAME [OPTION …]", description=explained,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("name", nargs="?", metavar="NAME", help=f"one of: {', '.join(names)}")
    made.add_argument("--list", action="store_true", help="explain every scenario")
    made.add_argument("--users", type=_whole(1, USERS_MAX), default=20, help="clients at a time (default: 20)")
    made.add_argument("--seconds", type=_number(0.1, SECONDS_MAX), default=20.0, help="of load (default: 20)")
    made.add_argument("--report", type=Path, metavar="FILE.html", help="write one page with everything")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    made.add_argument("--settle-timeout", type=_number(0, 3600), default=30.0, metavar="S",
                      help="how long the counts may take to agree after the load (default: 30)")  # fmt: skip
    made.add_argument("--paid", type=_whole(0, 10**9), metavar="N",
                      help="herd: calls paid for (default: 3000, or what a gateway says is left)")  # fmt: skip
    made.add_argument("--appendfsync", choices=("always", "everysec"), default="always",
                      help="valkey-restart: of the Valkey that is started (default: always)")  # fmt: skip
    made.add_argument("--body-mb", type=_whole(1, 4096), default=8, metavar="MB", help="big-bodies: size (default: 8)")
    theirs = made.add_argument_group("against your own deployment (nothing is started)")
    add = theirs.add_argument
    add("--url", action="append", default=[], help="of a gateway; may be repeated")
    add("--key", action="append", default=[], help="API key of an account; may be repeated")
    add("--account", action="append", default=[], metavar="ID", help="account of each --key, in the same order")
    add("--keys", type=Path, metavar="FILE", help="keys instead, one a line: KEY, or ACCOUNT KEY")
    add("--path", action="append", default=[], help=f"what to call; may be repeated (default: {ACCOUNTS_PATH})")
    add("--units", type=_whole(1, 10**9), default=1, metavar="N", help="what a call of these paths costs (default: 1)")
    add("--admin", default="", metavar="URL", help="admin side, for the ledger's figures")
    add("--admin-token-file", type=Path, metavar="FILE")
    add("--valkey", default="", metavar="URL", help="a single server, for usage events")
    add("--openmeter", default="", metavar="URL", help="for what it has counted")
    add("--openmeter-token-file", type=Path, metavar="FILE")
    add("--meter", action="append", default=[], metavar="SLUG", help="may be repeated (default: api_calls)")
    add("--lago", default="", metavar="URL", help="topup: where wallets are")
    add("--lago-key-file", type=Path, metavar="FILE")
    add("--credits", default="5.0", metavar="N", help="topup: credits granted each time (default: 5.0)")
    add("--disrupt", default="", metavar="COMMAND", help="restarts and outages: what makes the trouble")
    add("--restore", default="", metavar="COMMAND", help="and what ends it")
    add("--lasts", type=_number(0, 3600), default=3.0, metavar="S", help="seconds between the two (default: 3)")
    add("--echo", default="", metavar="PATH", help="big-bodies: a charged route that answers what it got")
    add("--blob", default="", metavar="PATH", help="big-bodies, slow-clients: answers ?bytes=N as the sample API does")
    add("--limit", type=_number(0.1, 3600), default=60.0, metavar="S",
        help="slow-clients: longest of the gateway's header, body and write timeouts (default: 60)")  # fmt: skip
    add("--pid", type=_whole(1, 2**22), action="append", default=[], help="of a gateway here, for its memory")
    made.epilog = "exit status: 0 all checks hold, 1 one does not, 2 misuse, cannot be run, or nothing was checked"
    return made


def parse(arguments: argparse.Namespace, names: Sequence[str]) -> Options:
    """Raises CannotRun for what makes no sense together, and for files that cannot be read."""
    given = arguments
    if given.name not in names:
        raise CannotRun(f"there is no scenario {given.name!r}; there are {', '.join(names)}")
    for url in given.url:
        if url.partition("://")[0] not in ("http", "https") or not url.partition("://")[2].strip("/"):
            raise CannotRun(f"--url: {url!r} is not http://HOST:PORT or https://HOST")
        if "@" in url or "/" in url.partition("://")[2].rstrip("/"):
            raise CannotRun("--url: only scheme, host and port are understood; --path is for paths")
    keys = _keys(given)
    theirs = ("key", "account", "keys", "path", "admin", "valkey", "openmeter", "lago", "disrupt", "restore", "pid")
    if given.url and not keys:
        raise CannotRun("--url needs --key or --keys: whose credit is to be used")
    if not given.url and any(getattr(given, name) for name in theirs):
        raise CannotRun(f"--{next(name for name in theirs if getattr(given, name))} goes with --url")
    return Options(
        scenario=given.name,
        urls=tuple(url.rstrip("/") for url in given.url),
        users=given.users,
        seconds=given.seconds,
        report=given.report,
        json=given.json,
        keys=keys,
        paths=tuple(given.path) or (ACCOUNTS_PATH,),
        units=given.units,
        admin=given.admin.rstrip("/"),
        admin_token=_secret(given.admin_token_file),
        valkey=Secret(given.valkey),
        openmeter=given.openmeter.rstrip("/"),
        openmeter_token=_secret(given.openmeter_token_file),
        meters=tuple(given.meter) or ("api_calls",),
        lago=given.lago.rstrip("/"),
        lago_key=_secret(given.lago_key_file),
        disrupt=given.disrupt,
        restore=given.restore,
        lasts_s=given.lasts,
        paid=given.paid,
        credits=given.credits,
        echo=given.echo,
        blob=given.blob,
        body_mb=given.body_mb,
        limit_s=given.limit,
        pids=tuple(given.pid),
        settle_timeout_s=given.settle_timeout,
        appendfsync=given.appendfsync,
    )


def _keys(given: argparse.Namespace) -> tuple[tuple[str, Secret], ...]:
    if given.account and len(given.account) != len(given.key):
        raise CannotRun("--account must be given as often as --key")
    accounts = given.account or [""] * len(given.key)
    keys = [(account, Secret(key)) for account, key in zip(accounts, given.key, strict=True)]
    if given.keys is not None:
        for line in _read(given.keys).splitlines():
            words = line.split()
            if words and not line.startswith("#"):
                keys.append((words[0] if len(words) > 1 else "", Secret(words[-1])))
    return tuple(keys)


def _secret(path: Path | None) -> Secret:
    return Secret("" if path is None else _read(path).strip())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"{path}: {getattr(error, 'strerror', None) or 'is no text'}") from None


class _number:
    """A number between two bounds, for argparse."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {self._low:g} to {self._high:g}")
        return value


class _whole(_number):
    def __call__(self, text: str) -> int:
        value = super().__call__(text)
        if value != int(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
        return int(value)
