from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from sample_farm import (
    BUILD,
    add_machine,
    attempts,
    claim,
    claimed,
    contents,
    job,
    model,
    queue_jobs,
    spec,
)
from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError

from farm.domain.hardware import MachineKind
from farm.domain.job import JobState
from farm.store import jobs
from farm.store.clock import now
from farm.store.database import reading, writing
from farm.store.schema import JobRow


def finish(engine: Engine, held: jobs.Claim) -> None:
    with writing(engine) as session:
        assert jobs.finish(session, held)


class TestOrder:
    def test_takes_the_oldest_job_first(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(8), spec(2), spec(4)])
        worker = add_machine(database)

        taken = []
        for _ in ids:
            held = claimed(database, worker)
            taken.append(held.job_id)
            finish(database, held)

        assert taken == ids
        assert claim(database, worker) is None

    def test_prefers_jobs_of_the_pair_already_loaded(self, database: Engine) -> None:
        other = model("other")
        ids = queue_jobs(database, [spec(2), spec(2, draft=other), spec(4), spec(4, draft=other)])
        worker = add_machine(database)

        taken = []
        for _ in ids:
            held = claim(database, worker, spec(draft=other).pair_key)
            assert held is not None
            taken.append(held.job_id)
            finish(database, held)

        assert taken == [ids[1], ids[3], ids[0], ids[2]]

    def test_takes_another_pair_when_none_shares_the_loaded_one(self, database: Engine) -> None:
        (only,) = queue_jobs(database, [spec()])
        worker = add_machine(database)

        held = claim(database, worker, held_pair="0" * 64)

        assert held is not None
        assert held.job_id == only

    def test_hands_over_the_spec_that_was_submitted(self, database: Engine) -> None:
        submitted = spec(6, label="again", draft=None)
        queue_jobs(database, [submitted])

        assert claimed(database, add_machine(database)).spec == submitted


class TestCapabilities:
    @pytest.mark.parametrize(
        "selector", ["any", "kind:nvidia", "name:bench-1"], ids=lambda word: word.split(":")[0]
    )
    def test_takes_jobs_whose_selector_fits(self, database: Engine, selector: str) -> None:
        queue_jobs(database, [spec(machine=selector)])
        worker = add_machine(database, "bench-1", kind=MachineKind.NVIDIA)

        assert claim(database, worker) is not None

    @pytest.mark.parametrize("selector", ["kind:apple", "name:bench-2", "name:bench"])
    def test_leaves_jobs_for_other_machines(self, database: Engine, selector: str) -> None:
        queue_jobs(database, [spec(machine=selector)])
        worker = add_machine(database, "bench-1", kind=MachineKind.NVIDIA)

        assert claim(database, worker) is None

    def test_leaves_jobs_of_a_build_that_is_not_there(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(build="llama-cpp-python==0.3.35"), spec()])
        worker = add_machine(database, builds=[BUILD])

        assert claimed(database, worker).job_id == ids[1]

    def test_leaves_jobs_of_an_engine_that_is_not_there(self, database: Engine) -> None:
        queue_jobs(database, [spec(engine="llama-server")])

        assert claim(database, add_machine(database)) is None

    def test_a_machine_that_can_run_nothing_takes_nothing(self, database: Engine) -> None:
        queue_jobs(database, [spec()])

        assert claim(database, add_machine(database, builds=[])) is None


class TestDue:
    def test_leaves_a_job_until_its_time_has_come(self, database: Engine) -> None:
        (waiting,) = queue_jobs(database, [spec()])
        worker = add_machine(database)
        with writing(database) as session:
            session.execute(update(JobRow).values(not_before=now() + 1000))
        assert claim(database, worker) is None

        with writing(database) as session:
            session.execute(update(JobRow).values(not_before=now() - 1))

        assert claimed(database, worker).job_id == waiting

    @pytest.mark.parametrize("state", [state for state in JobState if state != JobState.QUEUED])
    def test_takes_no_job_that_is_not_queued(self, database: Engine, state: JobState) -> None:
        queue_jobs(database, [spec()])
        worker = add_machine(database)
        with writing(database) as session:
            session.execute(update(JobRow).values(state=state))

        assert claim(database, worker) is None


class TestLease:
    def test_records_who_holds_the_job_and_until_when(self, database: Engine) -> None:
        (job_id,) = queue_jobs(database, [spec()])
        worker = add_machine(database)

        held = claimed(database, worker)

        row, (attempt,) = job(database, job_id), attempts(database, job_id)
        assert (row.state, row.attempts, row.lease_epoch) == (JobState.LEASED, 1, held.epoch)
        assert (row.lease_machine_id, row.lease_worker) == (worker.machine_id, worker.worker)
        assert row.lease_expires_at == pytest.approx(attempt.started_at + jobs.LEASE_SECONDS, abs=5)
        assert (attempt.epoch, attempt.machine_id, attempt.worker) == (
            held.epoch,
            worker.machine_id,
            worker.worker,
        )
        assert attempt.ended_at is None

    def test_a_second_worker_of_the_machine_gets_nothing(self, database: Engine) -> None:
        queue_jobs(database, [spec(2), spec(4)])
        first = add_machine(database)
        second = replace(first, worker="bench-1:2")
        held = claimed(database, first)
        before = contents(database)

        assert claim(database, second) is None

        assert contents(database) == before
        finish(database, held)
        assert claim(database, second) is not None

    def test_the_transaction_goes_on_after_a_busy_machine_was_refused(
        self, database: Engine
    ) -> None:
        queue_jobs(database, [spec(2), spec(4)])
        busy, free = add_machine(database, "busy"), add_machine(database, "free")
        claimed(database, busy)

        with writing(database) as session:
            assert jobs.claim(session, busy) is None
            assert jobs.claim(session, free) is not None

    def test_the_database_itself_refuses_two_leases_of_one_machine(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(2), spec(4)])
        worker = add_machine(database)
        claimed(database, worker)

        def lease_behind_the_state_machines_back() -> None:
            with writing(database) as session:
                session.execute(
                    update(JobRow)
                    .where(JobRow.id == ids[1])
                    .values(state=JobState.LEASED, lease_machine_id=worker.machine_id)
                )

        with pytest.raises(IntegrityError):
            lease_behind_the_state_machines_back()

    def test_the_database_lets_a_machine_keep_many_finished_jobs(self, database: Engine) -> None:
        queue_jobs(database, [spec(2), spec(4), spec(8)])
        worker = add_machine(database)

        for _ in range(3):
            finish(database, claimed(database, worker))


def test_six_machines_share_two_hundred_jobs_without_loss_or_double(database: Engine) -> None:
    ids = queue_jobs(database, [spec(label=str(n)) for n in range(200)])
    workers = [add_machine(database, f"bench-{n}") for n in range(6)]
    start, taken, errors = threading.Barrier(len(workers)), Counter[int](), []

    def work_off(worker: jobs.Claimer) -> None:
        try:
            start.wait()
            while (held := claim(database, worker)) is not None:
                finish(database, held)
                taken[held.job_id] += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work_off, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert taken == Counter(ids)
    with reading(database) as session:
        rows = session.query(JobRow.state, JobRow.attempts, JobRow.lease_epoch).all()
    assert {tuple(row) for row in rows} == {(JobState.DONE, 1, 1)}
    assert all(len(attempts(database, job_id)) == 1 for job_id in ids[:10])
