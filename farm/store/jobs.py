"""The job state machine. SQL is the truth; every change is one guarded statement.

queued --claim--> leased --finish--> done
                  leased --fail----> queued (a retry, after a pause) | failed
                  leased --reap----> queued | failed   (its worker stopped renewing the lease)
queued | leased --cancel--> cancelled;  failed | cancelled --requeue--> queued

A lease carries an epoch. Whoever writes under an older epoch writes nothing: the job was taken
away, and the writer must stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, case, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.domain.hardware import Machine
from farm.domain.job import JobSpec, JobState
from farm.store.clock import now
from farm.store.database import portions
from farm.store.schema import AttemptRow, JobRow

LEASE_SECONDS = 90.0
HEARTBEAT_SECONDS = 20.0
MAX_ATTEMPTS = 3
RETRY_PAUSE_SECONDS = 5.0
RING_AGAIN_SECONDS = 60.0

# A crash or a lost worker may be chance; these would only fail again.
FINAL_ERROR_KINDS = frozenset(
    {"model-missing", "model-changed", "load-failed", "incompatible", "bad-request", "timeout",
     "too-little-memory", "unsupported", "not-speculating", "build-changed",
     "wrong-law", "unauthorized"}
)  # fmt: skip


@dataclass(frozen=True)
class Claimer:
    """Who claims: one worker process on one machine, and what that machine can run."""

    machine_id: int
    worker: str
    selectors: tuple[str, ...]
    engines: tuple[str, ...]
    builds: tuple[str, ...]
    machine: Machine


@dataclass(frozen=True)
class Claim:
    """A leased job. Every later write names `job_id` and `epoch`."""

    job_id: int
    epoch: int
    spec: JobSpec


def claim(session: Session, claimer: Claimer, held_pair: str | None = None) -> Claim | None:
    """Lease the next due job this worker can run, or return None.

    Jobs that share the pair already loaded (`held_pair`) come first, then the oldest.
    """
    due = (
        select(JobRow.id)
        .where(_due(), _runnable(claimer))
        .order_by(case((JobRow.pair_key == held_pair, 0), else_=1), JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    try:
        with session.begin_nested():
            row = session.execute(
                update(JobRow)
                .where(JobRow.id == due, JobRow.state == JobState.QUEUED)
                .values(
                    state=JobState.LEASED,
                    lease_epoch=JobRow.lease_epoch + 1,
                    attempts=JobRow.attempts + 1,
                    lease_machine_id=claimer.machine_id,
                    lease_worker=claimer.worker,
                    lease_expires_at=now() + LEASE_SECONDS,
                )
                .returning(JobRow.id, JobRow.lease_epoch, JobRow.spec)
                .execution_options(synchronize_session=False)
            ).one_or_none()
    except IntegrityError:
        # The machine is measuring for another worker; two benchmarks at once would spoil both.
        return None
    if row is None:
        return None
    session.add(
        AttemptRow(
            job_id=row.id,
            epoch=row.lease_epoch,
            machine_id=claimer.machine_id,
            worker=claimer.worker,
            started_at=session.scalar(select(now())),
        )
    )
    return Claim(row.id, row.lease_epoch, JobSpec.from_payload(row.spec))


def heartbeat(session: Session, claim: Claim) -> bool:
    """Renew the lease; False means that it was lost and the work must stop."""
    return _guarded(session, claim, lease_expires_at=now() + LEASE_SECONDS)


def describe_attempt(session: Session, claim: Claim, **values: Any) -> None:
    """Record facts of the running attempt (environment, build digest, provenance, checks)."""
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == claim.job_id, AttemptRow.epoch == claim.epoch)
        .values(**values)
    )


def holds(session: Session, claim: Claim) -> bool:
    """Say whether the lease is still this claim's, and keep it so until the transaction ends."""
    return _guarded(session, claim, lease_worker=JobRow.lease_worker)


def finish(session: Session, claim: Claim) -> bool:
    """Mark the job done; False when the lease was lost meanwhile."""
    if not _guarded(
        session,
        claim,
        state=JobState.DONE,
        finished_at=now(),
        lease_expires_at=None,
        error_kind=None,
        error_message=None,
    ):
        return False
    _end_attempt(session, claim.job_id, claim.epoch, "done")
    return True


def fail(
    session: Session, claim: Claim, kind: str, message: str, log_tail: str | None = None
) -> JobState | None:
    """Record a failed attempt and return the job's new state: queued again, or failed.

    None when the lease was lost meanwhile: then the job is someone else's and stays as it is.
    """
    final = kind in FINAL_ERROR_KINDS
    values = _after_failure(final=final, kind=kind, message=message)
    if not _guarded(session, claim, **values):
        return None
    _end_attempt(session, claim.job_id, claim.epoch, "failed", kind, message, log_tail)
    return JobState(session.scalars(select(JobRow.state).where(JobRow.id == claim.job_id)).one())


def release(session: Session, claim: Claim, reason: str) -> bool:
    """Give a job back unharmed (the worker is stopping): the attempt does not count."""
    if not _guarded(
        session,
        claim,
        state=JobState.QUEUED,
        attempts=JobRow.attempts - 1,
        lease_expires_at=None,
        rung_at=None,
    ):
        return False
    _end_attempt(session, claim.job_id, claim.epoch, "released", "released", reason)
    return True


def reap(session: Session) -> list[int]:
    """Take back jobs whose lease has expired; return their ids."""
    expired = session.execute(
        select(JobRow.id, JobRow.lease_epoch, JobRow.lease_worker).where(
            JobRow.state == JobState.LEASED, JobRow.lease_expires_at < now()
        )
    ).all()
    taken = []
    for row in expired:
        message = f"The worker {row.lease_worker} stopped renewing its lease."
        changed = session.execute(
            update(JobRow)
            .where(
                JobRow.id == row.id,
                JobRow.lease_epoch == row.lease_epoch,
                JobRow.state == JobState.LEASED,
                JobRow.lease_expires_at < now(),
            )
            .values(**_after_failure(final=False, kind="lease-lost", message=message))
        )
        if _rowcount(changed):
            _end_attempt(session, row.id, row.lease_epoch, "failed", "lease-lost", message)
            taken.append(row.id)
    return taken


def cancel(session: Session, job_ids: Sequence[int]) -> int:
    """Cancel jobs that are not final; a running one's worker notices at its next heartbeat."""
    cancelled = session.scalars(
        update(JobRow)
        .where(JobRow.id.in_(job_ids), JobRow.state.in_([JobState.QUEUED, JobState.LEASED]))
        .values(state=JobState.CANCELLED, finished_at=now(), lease_expires_at=None)
        .returning(JobRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id.in_(cancelled), AttemptRow.ended_at.is_(None))
        .values(ended_at=now(), outcome="cancelled")
    )
    return len(cancelled)


def requeue(session: Session, job_ids: Sequence[int]) -> int:
    """Queue failed or cancelled jobs again with all their attempts ahead of them."""
    return _rowcount(
        session.execute(
            update(JobRow)
            .where(JobRow.id.in_(job_ids), JobRow.state.in_([JobState.FAILED, JobState.CANCELLED]))
            .values(
                state=JobState.QUEUED,
                attempts=0,
                not_before=0.0,
                finished_at=None,
                rung_at=None,
                error_kind=None,
                error_message=None,
            )
        )
    )


def unrung(session: Session) -> list[tuple[int, str]]:
    """Return (id, selector) of due jobs whose doorbell was never rung, or rang long ago."""
    stale = or_(JobRow.rung_at.is_(None), JobRow.rung_at < now() - RING_AGAIN_SECONDS)
    rows = session.execute(select(JobRow.id, JobRow.selector).where(_due(), stale)).all()
    return [(row.id, row.selector) for row in rows]


def mark_rung(session: Session, job_ids: Sequence[int]) -> None:
    """Note that the doorbell of these jobs was rung just now."""
    for some in portions(job_ids):
        session.execute(update(JobRow).where(JobRow.id.in_(some)).values(rung_at=now()))


def _due() -> ColumnElement[bool]:
    return (JobRow.state == JobState.QUEUED) & (JobRow.not_before <= now())


def _runnable(claimer: Claimer) -> ColumnElement[bool]:
    return (
        JobRow.selector.in_(claimer.selectors)
        & JobRow.engine.in_(claimer.engines)
        & JobRow.build.in_(claimer.builds)
    )


def _guarded(session: Session, claim: Claim, **values: Any) -> bool:
    changed = session.execute(
        update(JobRow)
        .where(
            JobRow.id == claim.job_id,
            JobRow.lease_epoch == claim.epoch,
            JobRow.state == JobState.LEASED,
        )
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    return _rowcount(changed) == 1


def _after_failure(*, final: bool, kind: str, message: str) -> dict[str, Any]:
    out_of_tries = (JobRow.attempts >= MAX_ATTEMPTS) if not final else (JobRow.id == JobRow.id)
    return {
        "state": case((out_of_tries, JobState.FAILED.value), else_=JobState.QUEUED.value),
        "finished_at": case((out_of_tries, now()), else_=None),
        "not_before": now() + func.coalesce(JobRow.attempts, 1) * RETRY_PAUSE_SECONDS,
        "lease_expires_at": None,
        "rung_at": None,
        "error_kind": kind,
        "error_message": message,
    }


def _end_attempt(
    session: Session,
    job_id: int,
    epoch: int,
    outcome: str,
    error_kind: str | None = None,
    error_message: str | None = None,
    log_tail: str | None = None,
) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.epoch == epoch)
        .values(
            ended_at=now(),
            outcome=outcome,
            error_kind=error_kind,
            error_message=error_message,
            log_tail=log_tail,
        )
    )


def _rowcount(result: Any) -> int:
    return cast("CursorResult[Any]", result).rowcount
