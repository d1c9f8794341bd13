"""farm dashboard: the results in a browser, on this machine only."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from dashboard.launch import command, find_free_port
from farm.cli.session import err, open_session

PORT = 8501


def dashboard(
    port: Annotated[int, typer.Option(help="Port to serve on; the next free one is taken.")] = PORT,
    address: Annotated[
        str, typer.Option(help="Address to serve on; anything but 127.0.0.1 opens it to others.")
    ] = "127.0.0.1",
) -> None:
    """Serve the dashboard until Ctrl-C."""
    session = open_session()
    chosen = find_free_port(port)
    err.print(f"dashboard: http://{address}:{chosen} (Ctrl-C stops it)")
    environment = os.environ | {
        "FARM_DATABASE_URL": session.settings.database_url,
        "FARM_HOME": str(session.home),
    }
    try:
        sys.exit(subprocess.run(command(chosen, address), env=environment).returncode)
    except KeyboardInterrupt:
        err.print("dashboard: stopped")
