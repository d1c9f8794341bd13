from __future__ import annotations

from collections.abc import Callable

import pytest
from sample_farm import (
    BUILD,
    ENGINE,
    add_machine,
    attempts,
    claim,
    claimed,
    contents,
    expire_leases,
    job,
    make_due,
    queue_jobs,
    sample,
    spec,
)
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from farm.domain.hardware import GIB, Hardware, Machine, MachineKind
from farm.domain.job import JobState
from farm.store import jobs
from farm.store.clock import now
from farm.store.database import reading, writing
from farm.store.results import add_samples
from farm.store.schema import AttemptRow, JobRow


def fail(engine: Engine, held: jobs.Claim, kind: str) -> JobState | None:
    with writing(engine) as session:
        return jobs.fail(session, held, kind, f"It said {kind}.", "the log's end")


def reap(engine: Engine) -> list[int]:
    with writing(engine) as session:
        return jobs.reap(session)


def clock(engine: Engine) -> float:
    with reading(engine) as session:
        return session.scalars(select(now())).one()


def claim_again(engine: Engine) -> jobs.Claim:
    """Return the same job's next claim, by another machine."""
    make_due(engine)
    return claimed(engine, add_machine(engine, "bench-2"))


WRITES: dict[str, Callable[[Session, jobs.Claim], object]] = {
    "heartbeat": jobs.heartbeat,
    "holds": jobs.holds,
    "finish": jobs.finish,
    "fail": lambda session, held: jobs.fail(session, held, "crashed", "It crashed."),
    "release": lambda session, held: jobs.release(session, held, "The worker was stopped."),
    "add_samples": lambda session, held: add_samples(session, held, [sample()]),
}


class TestHeartbeat:
    def test_renews_the_lease(self, database: Engine, held: jobs.Claim) -> None:
        with writing(database) as session:
            session.execute(update(JobRow).values(lease_expires_at=now() + 1))

        with writing(database) as session:
            assert jobs.heartbeat(session, held)

        expires = job(database, held.job_id).lease_expires_at
        assert expires == pytest.approx(clock(database) + jobs.LEASE_SECONDS, abs=5)

    def test_keeps_the_job_from_being_taken_back(self, database: Engine, held: jobs.Claim) -> None:
        expire_leases(database)
        with writing(database) as session:
            assert jobs.heartbeat(session, held)

        assert reap(database) == []


class TestOldEpoch:
    @pytest.mark.parametrize("write", WRITES)
    def test_nothing_is_written_once_another_worker_has_the_job(
        self, database: Engine, held: jobs.Claim, write: str
    ) -> None:
        expire_leases(database)
        assert reap(database) == [held.job_id]
        newer = claim_again(database)
        before = contents(database)

        with writing(database) as session:
            assert not WRITES[write](session, held)

        assert newer.epoch > held.epoch
        assert contents(database) == before

    @pytest.mark.parametrize("write", WRITES)
    def test_nothing_is_written_while_the_job_waits_for_its_next_worker(
        self, database: Engine, held: jobs.Claim, write: str
    ) -> None:
        expire_leases(database)
        reap(database)
        before = contents(database)

        with writing(database) as session:
            assert not WRITES[write](session, held)

        assert contents(database) == before

    @pytest.mark.parametrize("write", WRITES)
    @pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
    def test_nothing_is_written_after_the_end(
        self, database: Engine, held: jobs.Claim, end: str, write: str
    ) -> None:
        with writing(database) as session:
            if end == "finish":
                jobs.finish(session, held)
            elif end == "fail":
                jobs.fail(session, held, "timeout", "It took too long.")
            else:
                jobs.cancel(session, [held.job_id])
        before = contents(database)

        with writing(database) as session:
            assert not WRITES[write](session, held)

        assert contents(database) == before


class TestFinish:
    def test_ends_job_and_attempt(self, database: Engine, held: jobs.Claim) -> None:
        with writing(database) as session:
            assert jobs.finish(session, held)

        row, (attempt,) = job(database, held.job_id), attempts(database, held.job_id)
        assert row.state == JobState.DONE
        assert row.finished_at is not None
        assert row.lease_expires_at is None
        assert attempt.outcome == "done"
        assert attempt.ended_at == pytest.approx(row.finished_at, abs=5)

    def test_forgets_the_error_of_an_earlier_attempt(
        self, database: Engine, held: jobs.Claim
    ) -> None:
        fail(database, held, "crashed")
        newer = claim_again(database)

        with writing(database) as session:
            assert jobs.finish(session, newer)

        row = job(database, held.job_id)
        assert (row.error_kind, row.error_message) == (None, None)
        assert [attempt.outcome for attempt in attempts(database, held.job_id)] == [
            "failed",
            "done",
        ]


class TestFail:
    def test_queues_the_job_again_after_a_pause(self, database: Engine, held: jobs.Claim) -> None:
        assert fail(database, held, "crashed") == JobState.QUEUED

        row = job(database, held.job_id)
        assert (row.state, row.attempts, row.finished_at) == (JobState.QUEUED, 1, None)
        assert (row.error_kind, row.error_message) == ("crashed", "It said crashed.")
        assert row.not_before == pytest.approx(
            clock(database) + jobs.RETRY_PAUSE_SECONDS, abs=jobs.RETRY_PAUSE_SECONDS - 1
        )
        assert claim(database, add_machine(database, "bench-2")) is None

    def test_pauses_longer_after_each_attempt(self, database: Engine, held: jobs.Claim) -> None:
        fail(database, held, "crashed")
        first = job(database, held.job_id).not_before - clock(database)
        second_claim = claim_again(database)

        fail(database, second_claim, "crashed")

        second = job(database, held.job_id).not_before - clock(database)
        assert second - first == pytest.approx(jobs.RETRY_PAUSE_SECONDS, abs=2)

    def test_keeps_the_logs_end_with_the_attempt(self, database: Engine, held: jobs.Claim) -> None:
        fail(database, held, "crashed")

        (attempt,) = attempts(database, held.job_id)
        assert (attempt.outcome, attempt.error_kind) == ("failed", "crashed")
        assert (attempt.error_message, attempt.log_tail) == ("It said crashed.", "the log's end")
        assert attempt.ended_at is not None

    def test_gives_up_after_the_last_attempt(self, database: Engine) -> None:
        (job_id,) = queue_jobs(database, [spec()])
        worker = add_machine(database)

        states = []
        for _ in range(jobs.MAX_ATTEMPTS):
            make_due(database)
            states.append(fail(database, claimed(database, worker), "crashed"))

        assert states == [JobState.QUEUED] * (jobs.MAX_ATTEMPTS - 1) + [JobState.FAILED]
        assert job(database, job_id).finished_at is not None
        make_due(database)
        assert claim(database, worker) is None

    @pytest.mark.parametrize("kind", sorted(jobs.FINAL_ERROR_KINDS))
    def test_gives_up_at_once_on_what_would_only_fail_again(
        self, database: Engine, held: jobs.Claim, kind: str
    ) -> None:
        assert fail(database, held, kind) == JobState.FAILED

        assert job(database, held.job_id).finished_at is not None


class TestReap:
    def test_leaves_leases_that_have_not_expired(self, database: Engine, held: jobs.Claim) -> None:
        assert reap(database) == []

        assert job(database, held.job_id).state == JobState.LEASED

    def test_takes_back_a_job_whose_lease_has_expired(
        self, database: Engine, held: jobs.Claim
    ) -> None:
        expire_leases(database)

        assert reap(database) == [held.job_id]

        row, (attempt,) = job(database, held.job_id), attempts(database, held.job_id)
        assert (row.state, row.attempts, row.error_kind) == (JobState.QUEUED, 1, "lease-lost")
        assert "bench-1:1" in str(row.error_message)
        assert (attempt.outcome, attempt.error_kind) == ("failed", "lease-lost")
        assert reap(database) == []

    def test_frees_the_machine_for_another_job(self, database: Engine, held: jobs.Claim) -> None:
        queue_jobs(database, [spec(8)], "other")
        expire_leases(database)
        reap(database)
        make_due(database)
        with reading(database) as session:
            attempt = session.scalars(select(AttemptRow)).one()
        hardware = Hardware(MachineKind.CPU, "a CPU", 8, 16, GIB, "x86_64", "linux")
        machine = Machine("bench-1", hardware)
        worker = jobs.Claimer(
            attempt.machine_id, "bench-1:2", ("any",), (ENGINE,), (BUILD,), machine
        )

        assert claimed(database, worker).job_id == held.job_id

    def test_fails_a_job_whose_last_attempt_is_lost(self, database: Engine) -> None:
        (job_id,) = queue_jobs(database, [spec()])
        worker = add_machine(database)

        for _ in range(jobs.MAX_ATTEMPTS):
            make_due(database)
            claimed(database, worker)
            expire_leases(database)
            assert reap(database) == [job_id]

        assert job(database, job_id).state == JobState.FAILED


class TestRelease:
    def test_the_attempt_does_not_count(self, database: Engine, held: jobs.Claim) -> None:
        with writing(database) as session:
            assert jobs.release(session, held, "The worker was stopped.")

        row, (attempt,) = job(database, held.job_id), attempts(database, held.job_id)
        assert (row.state, row.attempts, row.lease_expires_at) == (JobState.QUEUED, 0, None)
        assert (attempt.outcome, attempt.error_message) == ("released", "The worker was stopped.")

    def test_the_job_is_due_at_once_under_a_new_epoch(
        self, database: Engine, held: jobs.Claim
    ) -> None:
        with writing(database) as session:
            jobs.release(session, held, "The worker was stopped.")

        again = claimed(database, add_machine(database, "bench-2"))

        assert (again.job_id, again.epoch) == (held.job_id, held.epoch + 1)


class TestCancel:
    def test_ends_what_is_queued_and_what_runs(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(2), spec(4), spec(8)])
        worker = add_machine(database)
        done = claimed(database, worker)
        with writing(database) as session:
            jobs.finish(session, done)
        claimed(database, worker)

        with writing(database) as session:
            assert jobs.cancel(session, ids) == 2

        states = [job(database, job_id).state for job_id in ids]
        assert states == [JobState.DONE, JobState.CANCELLED, JobState.CANCELLED]

    def test_the_running_worker_notices_at_its_next_heartbeat(
        self, database: Engine, held: jobs.Claim
    ) -> None:
        with writing(database) as session:
            jobs.cancel(session, [held.job_id])

        with writing(database) as session:
            assert not jobs.heartbeat(session, held)

    def test_ends_the_running_attempt(self, database: Engine, held: jobs.Claim) -> None:
        with writing(database) as session:
            jobs.cancel(session, [held.job_id])

        (attempt,) = attempts(database, held.job_id)
        assert attempt.outcome == "cancelled"
        assert attempt.ended_at is not None

    def test_leaves_attempts_that_ended_before_as_they_are(
        self, database: Engine, held: jobs.Claim
    ) -> None:
        fail(database, held, "crashed")

        with writing(database) as session:
            jobs.cancel(session, [held.job_id])

        assert [attempt.outcome for attempt in attempts(database, held.job_id)] == ["failed"]

    def test_leaves_other_jobs_alone(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(2), spec(4)])

        with writing(database) as session:
            assert jobs.cancel(session, ids[:1]) == 1

        assert job(database, ids[1]).state == JobState.QUEUED


class TestRequeue:
    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    def test_gives_all_attempts_back(self, database: Engine, held: jobs.Claim, end: str) -> None:
        with writing(database) as session:
            if end == "failed":
                jobs.fail(session, held, "timeout", "It took too long.")
            else:
                jobs.cancel(session, [held.job_id])

        with writing(database) as session:
            assert jobs.requeue(session, [held.job_id]) == 1

        row = job(database, held.job_id)
        assert (row.state, row.attempts, row.error_kind) == (JobState.QUEUED, 0, None)
        assert row.finished_at is None
        again = claimed(database, add_machine(database, "bench-2"))
        assert again.epoch == held.epoch + 1

    def test_leaves_done_queued_and_running_jobs_alone(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(2), spec(4), spec(8)])
        worker = add_machine(database)
        with writing(database) as session:
            done = jobs.claim(session, worker)
            assert done is not None
            jobs.finish(session, done)
        claimed(database, worker)
        before = contents(database)

        with writing(database) as session:
            assert jobs.requeue(session, ids) == 0

        assert contents(database) == before
