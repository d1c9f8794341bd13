"""Questions about attempts: what shaped the results that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.domain.job import JobState
from farm.domain.provenance import Conditions, Provenance
from farm.store.database import portions
from farm.store.schema import AttemptRow, JobRow, MachineRow


def job_conditions(session: Session, job_ids: Sequence[int]) -> dict[int, Conditions]:
    """Return the conditions of the jobs' successful attempts; jobs from before they were recorded
    are left out. Jobs under the same conditions share one object."""
    digests: dict[int, str] = {}
    examples: dict[str, int] = {}
    done = (AttemptRow.outcome == "done") & AttemptRow.conditions.is_not(None)
    for some in portions(job_ids):
        query = select(AttemptRow.job_id, AttemptRow.conditions, AttemptRow.id)
        for row in session.execute(query.where(AttemptRow.job_id.in_(some), done)):
            digests[row.job_id] = row.conditions
            examples.setdefault(row.conditions, row.id)
    found = {
        row.conditions: Provenance.from_payload(row.provenance).conditions
        for some in portions(list(examples.values()))
        for row in session.execute(
            select(AttemptRow.conditions, AttemptRow.provenance).where(AttemptRow.id.in_(some))
        )
    }
    return {job_id: found[digest] for job_id, digest in digests.items()}


@dataclass(frozen=True)
class JobAttempt:
    """A job's state and, where it is done, what its successful attempt recorded.

    provenance and the readings are None where the attempt recorded none.
    """

    job_id: int
    state: JobState
    error_kind: str | None
    error_message: str | None
    machine: str | None
    worker: str | None
    started_at: float | None
    ended_at: float | None
    provenance: Provenance | None
    environment_before: dict[str, Any] | None
    environment_after: dict[str, Any] | None
    checks: dict[str, Any] | None


def job_attempt(session: Session, job_id: int) -> JobAttempt | None:
    """Return a job and its successful attempt, None where there is no such job."""
    row = session.execute(
        select(JobRow, AttemptRow, MachineRow.name)
        .outerjoin(
            AttemptRow, (AttemptRow.job_id == JobRow.id) & (AttemptRow.outcome == JobState.DONE)
        )
        .outerjoin(MachineRow, MachineRow.id == AttemptRow.machine_id)
        .where(JobRow.id == job_id)
    ).one_or_none()
    if row is None:
        return None
    job, attempt, machine = row
    told = attempt.provenance if attempt else None
    return JobAttempt(
        job_id=job.id,
        state=JobState(job.state),
        error_kind=job.error_kind,
        error_message=job.error_message,
        machine=machine,
        worker=attempt.worker if attempt else None,
        started_at=attempt.started_at if attempt else None,
        ended_at=attempt.ended_at if attempt else None,
        provenance=Provenance.from_payload(told) if told else None,
        environment_before=attempt.environment_before if attempt else None,
        environment_after=attempt.environment_after if attempt else None,
        checks=attempt.checks if attempt else None,
    )


def job_checks(session: Session, job_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return what was checked of finished jobs as a whole, by id; jobs without are left out."""
    return {
        row.job_id: row.checks
        for some in portions(job_ids)
        for row in session.execute(
            select(AttemptRow.job_id, AttemptRow.checks).where(
                AttemptRow.job_id.in_(some), AttemptRow.outcome == "done"
            )
        )
        if row.checks
    }
