"""The commands on a farm of their own, run as a shell would run them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine
from typer.testing import CliRunner

from farm.cli import compat, db, fleet, machines, recommend, results, status, submit
from farm.errors import SpecfarmError
from farm.queue.embedded import EmbeddedBroker
from farm.store.database import open_database
from farm.store.migrate import upgrade

COMMANDS = (
    *(fleet.up, fleet.down, submit.submit, status.status, status.cancel),
    *(recommend.recommend, machines.machines, compat.compat),
)


@dataclass(frozen=True)
class Ran:
    """What a command did: exit code, both streams, and the sentence of a known error."""

    code: int
    stdout: str
    stderr: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


Run = Callable[..., Ran]


@pytest.fixture
def run(farm_home: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a runner of commands; an error the farm does not know is raised."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    app = typer.Typer()
    for command in COMMANDS:
        app.command()(command)
    app.add_typer(db.app, name="db")
    app.add_typer(results.app, name="results")

    def run(*arguments: str | Path) -> Ran:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        code, error = result.exit_code, ""
        if isinstance(result.exception, SpecfarmError):
            code, error = result.exception.exit_code, str(result.exception)
        elif result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.output
        return Ran(code, result.stdout, result.stderr, error)

    yield run
    EmbeddedBroker(farm_home).stop()


@pytest.fixture
def farm(run: Run, farm_home: Path) -> Iterator[Engine]:
    """Return the migrated database of the commands' farm."""
    engine = open_database(f"sqlite:///{farm_home / 'farm.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sweep(sweep_file: Callable[[str], Path], pair: tuple[Path, Path]) -> Path:
    """Return a sweep of two jobs."""
    return sweep_file(
        "name: first\n"
        "k: [2, 4]\n"
        f"pairs: [{{target: '{pair[0]}', drafts: '{pair[1]}'}}]\n"
        "prompts: {categories: [chat], per_category: 3}\n"
        "build: llama-cpp-python==0.3.36\n"
    )
