from __future__ import annotations

import pytest
from sample_farm import add_machine, claimed, make_due, queue_jobs, spec
from sqlalchemy import Engine, update

from farm.store import jobs
from farm.store.clock import now
from farm.store.database import reading, writing
from farm.store.schema import JobRow


def unrung(engine: Engine) -> list[tuple[int, str]]:
    with reading(engine) as session:
        return jobs.unrung(session)


def ring(engine: Engine, job_ids: list[int]) -> None:
    with writing(engine) as session:
        jobs.mark_rung(session, job_ids)


def test_asks_for_due_jobs_never_rung_for(database: Engine) -> None:
    ids = queue_jobs(database, [spec(2), spec(4, machine="kind:cpu")])
    assert sorted(unrung(database)) == [(ids[0], "any"), (ids[1], "kind:cpu")]

    ring(database, ids[:1])

    assert unrung(database) == [(ids[1], "kind:cpu")]


def test_asks_again_when_the_bell_rang_long_ago(database: Engine) -> None:
    ids = queue_jobs(database, [spec()])
    ring(database, ids)

    with writing(database) as session:
        session.execute(update(JobRow).values(rung_at=now() - jobs.RING_AGAIN_SECONDS - 1))

    assert unrung(database) == [(ids[0], "any")]


def test_asks_neither_for_paused_nor_for_running_jobs(database: Engine) -> None:
    queue_jobs(database, [spec(2), spec(4)])
    held = claimed(database, add_machine(database))
    with writing(database) as session:
        jobs.fail(session, held, "crashed", "It crashed.")
    claimed(database, add_machine(database, "bench-2"))

    assert unrung(database) == []


@pytest.mark.parametrize("back", ["release", "retry", "requeue"])
def test_asks_at_once_for_a_job_that_came_back(
    database: Engine, held: jobs.Claim, back: str
) -> None:
    ring(database, [held.job_id])

    with writing(database) as session:
        if back == "release":
            jobs.release(session, held, "The worker was stopped.")
        elif back == "retry":
            jobs.fail(session, held, "crashed", "It crashed.")
        else:
            jobs.cancel(session, [held.job_id])
            jobs.requeue(session, [held.job_id])
    make_due(database)

    assert unrung(database) == [(held.job_id, "any")]


def test_takes_more_jobs_than_a_statement_takes_values(database: Engine) -> None:
    ids = queue_jobs(database, [spec()])

    ring(database, [*range(10**6, 10**6 + 70_000), *ids])

    assert unrung(database) == []
