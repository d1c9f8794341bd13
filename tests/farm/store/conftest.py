"""A job that a worker holds."""

from __future__ import annotations

import pytest
from sample_farm import add_machine, claimed, queue_jobs, spec
from sqlalchemy import Engine

from farm.store import jobs


@pytest.fixture
def held(database: Engine) -> jobs.Claim:
    """Return the claim of the only job."""
    queue_jobs(database, [spec()])
    return claimed(database, add_machine(database))
