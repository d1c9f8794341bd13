from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from sample_farm import (
    add_machine,
    claimed,
    contents,
    job,
    model,
    plan,
    queue_jobs,
    spec,
    submit_jobs,
)
from sqlalchemy import Engine, event, select

from farm.domain.job import JobSpec, JobState
from farm.errors import UserError
from farm.services.plan import Refusal
from farm.services.submit import submit
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.schema import JobRow, SweepJobRow, SweepRow


def curve(*n_max: int, **changes: Any) -> list[JobSpec]:
    return [spec(k, **changes) for k in n_max]


class TestFirst:
    def test_every_job_is_queued_with_what_it_refers_to(self, database: Engine) -> None:
        done = submit_jobs(database, curve(2, 4))

        assert (done.total, done.new, done.existing, done.requeued) == (2, 2, 0, 0)
        sizes = {table: len(rows) for table, rows in contents(database).items()}
        assert sizes == {
            **dict.fromkeys(sizes, 0),
            "job": 2,
            "model_file": 2,
            "prompt": 6,
            "prompt_set": 1,
            "sweep": 1,
            "sweep_job": 2,
        }

    def test_the_job_carries_its_spec_and_the_columns_that_claims_ask_for(
        self, database: Engine
    ) -> None:
        wanted = spec(8, machine="kind:cpu", draft=None)

        (job_id,) = queue_jobs(database, [wanted])

        row = job(database, job_id)
        assert JobSpec.from_payload(row.spec) == wanted
        assert (row.key, row.pair_key) == (wanted.key, wanted.pair_key)
        assert (row.selector, row.engine, row.build) == ("kind:cpu", wanted.engine, wanted.build)
        assert (row.target_digest, row.draft_digest) == (wanted.target.digest, None)
        assert (row.state, row.attempts, row.lease_epoch) == (JobState.QUEUED, 0, 0)

    def test_jobs_are_numbered_in_the_plans_order(self, database: Engine) -> None:
        ids = queue_jobs(database, curve(16, 2, 8))

        assert ids == sorted(ids)

    def test_the_sweep_keeps_its_source(self, database: Engine) -> None:
        submit_jobs(database, curve(2), "mine")

        with reading(database) as session:
            sweep = session.scalars(select(SweepRow)).one()
        assert (sweep.name, sweep.source) == ("mine", "name: mine\n")


class TestAgain:
    def test_the_same_sweep_adds_nothing(self, database: Engine) -> None:
        first = submit_jobs(database, curve(2, 4))
        before = contents(database)

        again = submit_jobs(database, curve(2, 4))

        assert (again.sweep_id, again.new, again.existing) == (first.sweep_id, 0, 2)
        assert contents(database) == before

    def test_a_grown_list_of_k_adds_the_new_ones_alone(self, database: Engine) -> None:
        first = submit_jobs(database, curve(2, 4))

        grown = submit_jobs(database, curve(2, 4, 8))

        assert (grown.total, grown.new, grown.existing) == (3, 1, 2)
        assert grown.sweep_id != first.sweep_id
        with reading(database) as session:
            linked = session.execute(select(SweepJobRow.sweep_id, SweepJobRow.job_id)).all()
            assert session.query(JobRow).count() == 3
        assert sorted(row.sweep_id for row in linked) == [first.sweep_id] * 2 + [grown.sweep_id] * 3

    def test_jobs_under_way_go_on_undisturbed(self, database: Engine) -> None:
        submit_jobs(database, curve(2, 4))
        worker = add_machine(database)
        held = claimed(database, worker)
        before = contents(database)["job"]

        submit_jobs(database, curve(2, 4), "another name")

        assert contents(database)["job"] == before
        with writing(database) as session:
            assert jobs.finish(session, held)

    def test_a_label_measures_the_same_cells_again(self, database: Engine) -> None:
        submit_jobs(database, curve(2, 4))

        assert submit_jobs(database, curve(2, 4, label="again")).new == 2

    def test_a_models_first_name_stays(self, database: Engine) -> None:
        submit_jobs(database, [spec(target=model("first", "content"))])

        submit_jobs(database, [spec(8, target=model("second", "content"))])

        names = [row[1] for row in contents(database)["model_file"]]
        assert sorted(names) == ["draft", "first"]


class TestRetryFailed:
    @pytest.fixture
    def ids(self, database: Engine) -> list[int]:
        """Return a failed, a cancelled, a done and a queued job, in this order."""
        ids = queue_jobs(database, curve(1, 2, 3, 4))
        worker = add_machine(database)
        with writing(database) as session:
            failed = jobs.claim(session, worker)
            assert failed is not None
            jobs.fail(session, failed, "timeout", "It took too long.")
            jobs.cancel(session, [ids[1]])
            done = jobs.claim(session, worker)
            assert done is not None
            jobs.finish(session, done)
        return ids

    def test_queues_failed_and_cancelled_jobs_again(self, database: Engine, ids: list[int]) -> None:
        done = submit(database, plan(curve(1, 2, 3, 4)), retry_failed=True)

        assert (done.new, done.requeued) == (0, 2)
        states = [job(database, job_id).state for job_id in ids]
        assert states == [JobState.QUEUED, JobState.QUEUED, JobState.DONE, JobState.QUEUED]

    def test_leaves_them_alone_unless_asked(self, database: Engine, ids: list[int]) -> None:
        assert submit(database, plan(curve(1, 2, 3, 4))).requeued == 0

        states = [job(database, job_id).state for job_id in ids[:2]]
        assert states == [JobState.FAILED, JobState.CANCELLED]

    def test_leaves_the_jobs_of_other_sweeps_alone(self, database: Engine, ids: list[int]) -> None:
        assert submit(database, plan(curve(2)), retry_failed=True).requeued == 1

        assert job(database, ids[0]).state == JobState.FAILED


class TestRefused:
    def test_a_pair_that_does_not_fit_stores_nothing(self, database: Engine) -> None:
        submit_jobs(database, curve(2), "earlier")
        before = contents(database)
        unfit = replace(
            plan(curve(4, 8)), refusals=(Refusal("target", "stranger", ("no common words",)),)
        )

        with pytest.raises(UserError) as caught:
            submit(database, unfit)

        assert contents(database) == before
        message = str(caught.value)
        assert "target and stranger can't speculate together: no common words" in message
        assert "Nothing was submitted." in message

    def test_a_plan_without_jobs_stores_nothing(self, database: Engine) -> None:
        before = contents(database)

        with pytest.raises(UserError, match="no job"):
            submit(database, plan([]))

        assert contents(database) == before


def test_a_fault_at_any_statement_leaves_nothing(database: Engine) -> None:
    class Fault(Exception):
        pass

    seen: list[str] = []
    fatal = 0

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "SELECT")):
            seen.append(statement)
            if len(seen) == fatal:
                raise Fault

    wanted, empty = plan(curve(2, 4)), contents(database)
    event.listen(database, "before_cursor_execute", count)
    while True:
        seen.clear()
        fatal += 1
        try:
            submit(database, wanted, retry_failed=True)
            break
        except Fault:
            event.remove(database, "before_cursor_execute", count)
            assert contents(database) == empty, f"left by a fault at: {seen[-1]}"
            event.listen(database, "before_cursor_execute", count)
    event.remove(database, "before_cursor_execute", count)

    inserts = [statement for statement in seen if statement.startswith("INSERT")]
    assert len(inserts) == 6
    assert fatal == len(seen) + 1
    assert len(contents(database)["job"]) == 2


def test_two_who_submit_at_once_store_each_job_once(database: Engine) -> None:
    start, done, errors = threading.Barrier(2), [], []

    def run(name: str) -> None:
        try:
            start.wait()
            done.append(submit_jobs(database, curve(*range(1, 21)), name))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    tables = contents(database)
    assert (len(tables["job"]), len(tables["sweep"]), len(tables["sweep_job"])) == (20, 2, 40)
    assert all(one.total == 20 for one in done)
