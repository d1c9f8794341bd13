"""The `farm` command: one module per subcommand, errors as one sentence, documented exit codes."""

from __future__ import annotations

import os
import sys

import typer

from farm.cli import (
    calibrate,
    compat,
    dashboard,
    db,
    demo,
    doctor,
    fleet,
    machines,
    recommend,
    status,
    submit,
)
from farm.errors import SpecfarmError

app = typer.Typer(
    name="farm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find out whether speculative decoding pays on your machines, and with which K.",
    epilog="Exit codes: 0 done; 1 unexpected failure; 2 bad input; 3 broker, database or disk "
    "missing; 4 machine too small; 5 a benchmark failed; 130 interrupted.",
)
for command in (
    demo.demo,
    fleet.up,
    fleet.down,
    submit.submit,
    status.status,
    status.cancel,
    recommend.recommend,
    recommend.results,
    fleet.worker,
    machines.machines,
    compat.compat,
    dashboard.dashboard,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(db.app, name="db")


def main() -> None:
    """Run the command line; a known error is one sentence on stderr and its exit code."""
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
