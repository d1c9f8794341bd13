"""Bringing a database to this farm's tables, and refusing to work on any other."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from farm.errors import InfrastructureError
from farm.paths import resource
from farm.store.database import altering, reading
from farm.store.schema import Base


def head() -> str:
    """Return the migration this farm's code was written for."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise InfrastructureError("This installation ships no migrations; install specfarm again.")
    return revision


def current(engine: Engine) -> str | None:
    """Return the database's migration, None where it has none yet."""
    with reading(engine) as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Migrate to `head()`; return the migrations before and after."""
    before = current(engine)
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if before is not None and before not in known:
        raise InfrastructureError(
            f"The database is at migration {before}, which this farm does not know: a newer "
            "farm made it. Update specfarm, or point FARM_DATABASE_URL to another database."
        )
    with altering(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, head()


def require_head(engine: Engine) -> None:
    """Raise InfrastructureError unless the database is at this farm's migration."""
    found, wanted = current(engine), head()
    if found == wanted:
        return
    state = f"is at migration {found}" if found else "has no tables yet"
    raise InfrastructureError(
        f"The database {engine.url.render_as_string(hide_password=True)} {state}; this farm "
        f"needs {wanted}. Run 'farm db upgrade'."
    )


def differences(engine: Engine) -> list[str]:
    """Return how the database's tables differ from the code's; empty when they agree."""
    with reading(engine) as session:
        context = MigrationContext.configure(session.connection())
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resource("migrations")).replace("%", "%%"))
    return config
