"""Alembic's entry: runs on the connection that `farm.store.migrate` hands over."""

from alembic import context
from sqlalchemy import text

from farm.store.schema import Base

# Two upgrades at once on PostgreSQL wait for each other; the number only has to be our own.
ADVISORY_LOCK = 0x5BEC_FA23

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
