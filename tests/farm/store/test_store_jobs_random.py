"""Random sequences of what workers and users do keep the state machine's promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sample_farm import (
    add_machine,
    claim,
    contents,
    expire_leases,
    make_due,
    queue_jobs,
    sample,
    spec,
)
from sqlalchemy import Engine, delete, select, update

from farm.domain.job import JobState
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.results import add_samples
from farm.store.schema import AttemptRow, JobRow, SampleRow

JOBS = 3
WORKERS = 3
EXAMPLES = 25
STEPS = 25

workers = st.integers(0, WORKERS - 1)
some_jobs = st.sets(st.integers(0, JOBS - 1), min_size=1)
# Any claim handed out so far, counted from the newest: most often the one that still holds.
which = st.integers(0, 30)
kinds = st.sampled_from(["crashed", "lost-child", "timeout"])


class JobLife(RuleBasedStateMachine):
    """Two workers on one machine and one on another, and a user who cancels and requeues."""

    def __init__(self, engine: Engine, ids: list[int], claimers: list[jobs.Claimer]) -> None:
        super().__init__()
        self.engine, self.ids, self.claimers = engine, ids, claimers
        self.claims: list[jobs.Claim] = []
        self.final: dict[int, tuple[Any, ...]] = {}
        with writing(engine) as session:
            session.execute(delete(SampleRow))
            session.execute(delete(AttemptRow))
            session.execute(
                update(JobRow).values(
                    state=JobState.QUEUED,
                    attempts=0,
                    not_before=0.0,
                    finished_at=None,
                    lease_epoch=0,
                    lease_machine_id=None,
                    lease_expires_at=None,
                    error_kind=None,
                )
            )

    def row(self, job_id: int) -> JobRow:
        with reading(self.engine) as session:
            return session.scalars(select(JobRow).where(JobRow.id == job_id)).one()

    def pick(self, back: int) -> jobs.Claim | None:
        return self.claims[-1 - back % len(self.claims)] if self.claims else None

    def is_current(self, held: jobs.Claim) -> bool:
        row = self.row(held.job_id)
        return row.state == JobState.LEASED and row.lease_epoch == held.epoch

    @rule(worker=workers)
    def claim(self, worker: int) -> None:
        found = claim(self.engine, self.claimers[worker])
        if found is not None:
            self.claims.append(found)

    @rule(back=which)
    def heartbeat(self, back: int) -> None:
        if held := self.pick(back):
            current = self.is_current(held)
            with writing(self.engine) as session:
                assert jobs.heartbeat(session, held) == current

    @rule(back=which)
    def store_a_sample(self, back: int) -> None:
        if held := self.pick(back):
            current = self.is_current(held)
            with writing(self.engine) as session:
                assert add_samples(session, held, [sample()]) == current

    @rule(back=which)
    def finish(self, back: int) -> None:
        if held := self.pick(back):
            current = self.is_current(held)
            with writing(self.engine) as session:
                assert jobs.finish(session, held) == current

    @rule(back=which, kind=kinds)
    def fail(self, back: int, kind: str) -> None:
        if held := self.pick(back):
            current = self.is_current(held)
            with writing(self.engine) as session:
                state = jobs.fail(session, held, kind, "It failed.")
            assert (state is not None) == current
            if state is not None:
                assert self.row(held.job_id).state == state

    @rule(back=which)
    def release(self, back: int) -> None:
        if held := self.pick(back):
            current = self.is_current(held)
            with writing(self.engine) as session:
                assert jobs.release(session, held, "The worker was stopped.") == current

    @rule()
    def every_worker_falls_silent(self) -> None:
        expire_leases(self.engine)
        with writing(self.engine) as session:
            jobs.reap(session)

    @rule()
    def the_pauses_pass(self) -> None:
        make_due(self.engine)

    @rule(places=some_jobs)
    def cancel(self, places: set[int]) -> None:
        with writing(self.engine) as session:
            jobs.cancel(session, [self.ids[place] for place in places])

    @rule(places=some_jobs)
    def requeue(self, places: set[int]) -> None:
        chosen = [self.ids[place] for place in places]
        for job_id in chosen:
            if job_id in self.final and self.row(job_id).state != JobState.DONE:
                del self.final[job_id]
        with writing(self.engine) as session:
            jobs.requeue(session, chosen)

    @invariant()
    def promises_hold(self) -> None:
        tables = contents(self.engine)
        with reading(self.engine) as session:
            rows = {row.id: row for row in session.scalars(select(JobRow))}
            tried = list(session.scalars(select(AttemptRow)))
        assert sorted(rows) == self.ids, "a job was lost"
        leased = [row for row in rows.values() if row.state == JobState.LEASED]
        machines = [row.lease_machine_id for row in leased]
        assert len(machines) == len(set(machines)), "a machine measures two jobs"
        for row in rows.values():
            assert row.state in set(JobState)
            assert 0 <= row.attempts <= jobs.MAX_ATTEMPTS
            assert (row.lease_expires_at is not None) == (row.state == JobState.LEASED)
            assert (row.finished_at is not None) == JobState(row.state).is_final
            epochs = sorted(attempt.epoch for attempt in tried if attempt.job_id == row.id)
            assert epochs == list(range(1, row.lease_epoch + 1)), "not one attempt per epoch"
        running = {(row.id, row.lease_epoch) for row in leased}
        unended = {(one.job_id, one.epoch) for one in tried if one.ended_at is None}
        assert unended == running, "an attempt is open without a lease, or a lease without one"
        assert {(one.job_id, one.epoch) for one in tried if one.outcome is None} == running
        now_rows = {line[0]: line for line in tables["job"]}
        for job_id, line in self.final.items():
            assert now_rows[job_id] == line, "a final job changed"
        self.final = {
            job_id: line
            for job_id, line in now_rows.items()
            if JobState(rows[job_id].state).is_final
        }

    def teardown(self) -> None:
        """Whatever happened, the jobs that are not final can all be run to their end."""
        self.every_worker_falls_silent()
        make_due(self.engine)
        while (held := claim(self.engine, self.claimers[0])) is not None:
            with writing(self.engine) as session:
                assert jobs.finish(session, held)
        for job_id in self.ids:
            assert JobState(self.row(job_id).state).is_final, "a job can't be reached any more"


def test_random_sequences_keep_the_promises(database: Engine) -> None:
    ids = queue_jobs(database, [spec(n_max) for n_max in range(1, JOBS + 1)])
    first, other = add_machine(database, "bench-1"), add_machine(database, "bench-2")
    second = replace(first, worker="bench-1:2")
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: JobLife(database, ids, [first, second, other]),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
        ),
    )
