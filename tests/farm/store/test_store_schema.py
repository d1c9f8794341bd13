from __future__ import annotations

from sqlalchemy import Engine, select

from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.schema import AttemptRow


def test_what_was_not_checked_is_sqls_null(database: Engine, held: jobs.Claim) -> None:
    """JSON's own null would be a value to every query that asks whether there is one."""
    with writing(database) as session:
        jobs.describe_attempt(session, held, checks=None)

    with reading(database) as session:
        found = session.scalars(select(AttemptRow.checks).where(AttemptRow.checks.is_(None))).all()
    assert found == [None]
