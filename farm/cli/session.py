"""What commands share: the settings in force, the database, the broker, and how things print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from celery import Celery
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine

from farm import config, paths
from farm.queue.app import connect
from farm.queue.embedded import EmbeddedBroker
from farm.services.plan import Plan, plan_sweep
from farm.store.database import open_database
from farm.store.migrate import require_head

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]

# Piped into a file, tables keep their width; only a real terminal is as narrow as it says.
PIPED_WIDTH = 120

out = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class FarmSession:
    """One command's view of the farm."""

    settings: config.Config
    home: Path

    @property
    def embedded(self) -> EmbeddedBroker | None:
        """Return the embedded broker, None where FARM_BROKER_URL names another."""
        return None if self.settings.broker_url else EmbeddedBroker(self.home)

    def celery(self) -> Celery:
        """Return the Celery app, pointed to the broker in force."""
        embedded = self.embedded
        return connect(embedded.url if embedded else str(self.settings.broker_url))

    def database(self) -> Engine:
        """Return the database, at this farm's migration. Raises InfrastructureError."""
        engine = open_database(self.settings.database_url)
        require_head(engine)
        return engine


def open_session() -> FarmSession:
    """Read the settings."""
    return FarmSession(config.load(), paths.home())


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def plan_with_progress(path: Path) -> Plan:
    """Plan a sweep, with a progress bar on stderr while large model files are read."""
    with hashing_bar() as advance:
        return plan_sweep(path, advance)


@contextmanager
def hashing_bar() -> Iterator[Any]:
    """Yield a callback (file, bytes done, bytes in all) that draws a bar on stderr, if anyone
    looks: in a log it would be an empty line before every error."""
    if not is_interactive():
        yield lambda *_at: None
        return
    columns = (
        TextColumn("reading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not is_interactive()) as bars:
        tasks: dict[Path, Any] = {}

        def advance(path: Path, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path.name, total=total)
            bars.update(tasks[path], completed=done)

        yield advance


def is_interactive() -> bool:
    """Say whether live displays make sense on stderr."""
    return err.is_terminal and not os.environ.get("CI")
