"""The `farm` command: one module per subcommand, errors as one sentence, documented exit codes."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from farm import __version__
from farm.errors import SpecfarmError

# Subcommand -> where it lives. A command's module is imported when it is called: the broker's
# and the database's libraries take a second that 'farm compat' need not wait for.
COMMANDS = {
    "demo": "farm.cli.demo:demo",
    "up": "farm.cli.fleet:up",
    "down": "farm.cli.fleet:down",
    "submit": "farm.cli.submit:submit",
    "status": "farm.cli.status:status",
    "cancel": "farm.cli.status:cancel",
    "recommend": "farm.cli.recommend:recommend",
    "results": "farm.cli.results:app",
    "report": "farm.cli.report:report",
    "dashboard": "farm.cli.dashboard:dashboard",
    "worker": "farm.cli.fleet:worker",
    "machines": "farm.cli.machines:machines",
    "builds": "farm.cli.builds:app",
    "endpoints": "farm.cli.endpoints:app",
    "calibrate": "farm.cli.calibrate:app",
    "compat": "farm.cli.compat:compat",
    "db": "farm.cli.db:app",
    "doctor": "farm.cli.doctor:doctor",
}


class _Commands(TyperGroup):
    """Commands imported by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(cmd_name)(found)
            found = single
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="farm",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 unexpected failure; 2 bad input; 3 broker, database or disk "
    "missing; 4 machine too small; 5 a benchmark failed; 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"specfarm {__version__}")
        raise typer.Exit


@app.callback()
def farm(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
) -> None:
    """Find out whether speculative decoding pays on your machines, and with which K."""


def main() -> None:
    """Run the command line; a known error is one sentence on stderr and its exit code."""
    # As with Ctrl-C: what a command started, its `finally` stops.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except SpecfarmError as error:
        print(f"farm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has closed it ('farm results | head'); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
