"""Opening the database: SQLite for one host, PostgreSQL for a fleet, the same code on both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from farm.errors import InfrastructureError, UserError

SQLITE_BUSY_TIMEOUT_MS = 30_000
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afpfs"}
# SQLite takes 32,766 values in one statement, PostgreSQL 65,535.
VALUES_PER_STATEMENT = 30_000

T = TypeVar("T")


def open_database(url: str) -> Engine:
    """Return an engine for `url`, creating a SQLite file's folder.

    Raises UserError on a malformed URL or an unsupported database, InfrastructureError where a
    SQLite file would lie on a network file system (its WAL needs shared memory on one host).
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UserError(
            "The database URL can't be read; use sqlite:///path/to/farm.db or "
            "postgresql://user@host/name in FARM_DATABASE_URL."
        ) from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise UserError(
            f"The database '{backend}' is not supported; use sqlite:///... on one host or "
            "postgresql://... for a fleet."
        )
    if backend == "sqlite":
        if parsed.get_driver_name() != "pysqlite":
            raise UserError("SQLite is used with Python's own driver; write sqlite:///path.")
        return _open_sqlite(url, parsed.database)
    try:
        return create_engine(url, pool_pre_ping=True)
    except (ImportError, NoSuchModuleError):
        raise InfrastructureError(
            "PostgreSQL needs its driver; install it with: pip install 'specfarm[postgres]'."
        ) from None


def is_there(url: str) -> bool:
    """Say whether there can be a database to open: a SQLite file that is missing would be made."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()


def _open_sqlite(url: str, database: str | None) -> Engine:
    if not database or database == ":memory:":
        raise UserError(
            "An in-memory database is gone with its process; give SQLite a file: "
            "sqlite:///path/to/farm.db."
        )
    folder = Path(database).resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"The database's folder {folder} can't be made ({error.strerror}); choose another "
            "with FARM_HOME or FARM_DATABASE_URL."
        ) from None
    file_system = _file_system_of(folder)
    if file_system in NETWORK_FILE_SYSTEMS:
        raise InfrastructureError(
            f"{folder} lies on a network file system ({file_system}), where SQLite can't share "
            "a database; use a local folder, or PostgreSQL for several hosts."
        )
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _file_system_of(folder: Path) -> str | None:
    import psutil

    mounts = [
        part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling would begin deferred; `_begin_sqlite` decides instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer that first reads under a deferred BEGIN fails at once when another has written
    # since, whatever the busy timeout: it must take the write lock at the start.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield values in portions that one statement can name."""
    for start in range(0, len(values), VALUES_PER_STATEMENT):
        yield values[start : start + VALUES_PER_STATEMENT]


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a session for queries; nothing it does is committed."""
    with _reachable(engine), Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Open a session that commits at the end, or rolls all of it back on an exception."""
    with (
        _reachable(engine),
        Session(engine.execution_options(writes=True)) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def altering(engine: Engine) -> Iterator[Connection]:
    """Open a connection that may change tables, and commits at the end.

    SQLite changes a table by replacing it, which no table allows that others refer to; there
    references are checked at the end instead. Raises InfrastructureError where one is broken, or
    where the database is locked, full or away.
    """
    with (
        _reachable(engine),
        engine.execution_options(writes=True).connect() as connection,
    ):
        is_sqlite = connection.dialect.name == "sqlite"
        if is_sqlite:
            # Inside a transaction it would do nothing.
            connection.connection.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                if is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise InfrastructureError(
                        "The database has rows that refer to rows that are gone, so it was left "
                        "at its old tables; restore it from a backup."
                    )
        finally:
            if is_sqlite:
                # The next connection of the pool checks references again.
                connection.invalidate()


@contextmanager
def _reachable(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        # A file that is no database, or a broken one, comes as the base class itself.
        if type(error) not in (OperationalError, DatabaseError):
            raise
        text = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        if "no such table" in text:
            advice = "run 'farm db upgrade'"
        elif "not a database" in text:
            advice = "point FARM_DATABASE_URL to another file, or move this one away"
        elif "locked" in text:
            advice = "something else is writing to it; try again when that is done"
        elif "full" in text:
            advice = "free some disk space and try again; nothing was half-written"
        else:
            advice = "check FARM_DATABASE_URL and that the database is up"
        where = engine.url.render_as_string(hide_password=True)
        raise InfrastructureError(f"The database {where} says: {text}; {advice}.") from error
