"""The command ``sidecar``. Exit codes: 0 done, 1 failed, 2 misused (arguments, configuration)."""

from __future__ import annotations

import sys

import typer
from redis.exceptions import RedisError

from sidecar.cli import account, check, demo, outbox, run
from sidecar.cli.output import fail
from sidecar.config.problems import ConfigError
from sidecar.control.assemble import SetupError

app = typer.Typer(
    name="sidecar",
    help="Quota gateway for Open Banking APIs: debits credits in Valkey before a request passes, meters every debit once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo.register(app)
run.register(app)
check.register(app)
app.add_typer(account.app, name="account")
app.add_typer(outbox.app, name="outbox")


@app.command()
def version() -> None:
    """Print the version.

    Example: [bold]sidecar version[/bold]
    """
    from sidecar import __version__

    typer.echo(__version__)


def main() -> None:
    """Runs the command line; a user's mistake is a message, not a traceback."""
    try:
        app()
    except ConfigError as error:
        fail(str(error), 2)
    except SetupError as error:
        fail(str(error), 1)
    except (RedisError, OSError) as error:
        fail(f"Valkey: {error}", 1)
    except KeyboardInterrupt:
        sys.exit(130)
