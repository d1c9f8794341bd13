"""Questions to the database. Rows come back small: the samples' blobs stay where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session, aliased

from farm.domain.job import JobSpec, JobState
from farm.store.arrays import unpack
from farm.store.database import portions
from farm.store.schema import (
    AttemptRow,
    HardwareProfileRow,
    JobRow,
    MachineRow,
    ModelFileRow,
    SampleRow,
    SweepJobRow,
    SweepRow,
)


@dataclass(frozen=True)
class MeasuredSample:
    """A sample of a finished job, with what tells it from samples it must not be mixed with.

    emitted_token: what it said where it parted from its reference, None where it did not, or had
    ended there.
    """

    job_id: int
    machine: str
    hardware: str
    build_digest: str | None
    target_name: str
    draft_name: str | None
    is_calibration: bool
    architecture: str
    prompt_digest: str
    repeat: int
    arm: str
    generated_tokens: int
    prompt_ms: float
    decode_ms: float
    rounds: int | None
    drafted: int | None
    accepted: int | None
    parity: str
    control_token: int | None
    emitted_token: int | None


def measured_samples(
    session: Session, sweep_id: int | None = None, job_id: int | None = None
) -> tuple[list[MeasuredSample], dict[int, JobSpec]]:
    """Return the samples of every finished job's successful attempt, and the jobs' specs; of one
    sweep or one job when asked."""
    target, draft = aliased(ModelFileRow), aliased(ModelFileRow)
    query = (
        select(
            JobRow.id,
            MachineRow.name.label("machine"),
            HardwareProfileRow.label.label("hardware"),
            AttemptRow.build_digest,
            target.name.label("target_name"),
            draft.name.label("draft_name"),
            target.is_calibration,
            target.architecture,
            SampleRow.prompt_digest,
            SampleRow.repeat,
            SampleRow.arm,
            SampleRow.generated_tokens,
            SampleRow.prompt_ms,
            SampleRow.decode_ms,
            SampleRow.rounds,
            SampleRow.drafted,
            SampleRow.accepted,
            SampleRow.parity,
            SampleRow.control_token,
            SampleRow.first_divergence,
            # The texts of the few that parted, and no other blob.
            case((SampleRow.first_divergence.is_not(None), SampleRow.arrays)),
        )
        .join(AttemptRow, AttemptRow.job_id == JobRow.id)
        .join(
            SampleRow,
            (SampleRow.job_id == JobRow.id) & (SampleRow.epoch == AttemptRow.epoch),
        )
        .join(MachineRow, MachineRow.id == AttemptRow.machine_id)
        .join(HardwareProfileRow, HardwareProfileRow.key == MachineRow.hardware_key)
        .join(target, target.digest == JobRow.target_digest)
        .outerjoin(draft, draft.digest == JobRow.draft_digest)
        .where(JobRow.state == JobState.DONE, AttemptRow.outcome == "done")
        .order_by(JobRow.id, SampleRow.id)
    )
    if sweep_id is not None:
        query = query.join(SweepJobRow, SweepJobRow.job_id == JobRow.id).where(
            SweepJobRow.sweep_id == sweep_id
        )
    if job_id is not None:
        query = query.where(JobRow.id == job_id)
    samples = [
        MeasuredSample(*(*columns, _token_at(position, arrays)))
        for *columns, position, arrays in map(tuple, session.execute(query))
    ]
    return samples, job_specs(session, sorted({sample.job_id for sample in samples}))


def _token_at(position: int | None, arrays: bytes | None) -> int | None:
    if position is None or arrays is None:
        return None
    output_ids = unpack(arrays)["output_ids"]
    return output_ids[position] if position < len(output_ids) else None


def job_specs(session: Session, job_ids: Sequence[int]) -> dict[int, JobSpec]:
    """Return the specs of the given jobs by id."""
    return {
        row.id: JobSpec.from_payload(row.spec)
        for some in portions(job_ids)
        for row in session.execute(select(JobRow.id, JobRow.spec).where(JobRow.id.in_(some)))
    }


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is: its jobs by state."""

    id: int
    name: str
    submitted_at: float
    states: dict[str, int]

    @property
    def total(self) -> int:
        """Return the number of jobs."""
        return sum(self.states.values())

    @property
    def finished(self) -> int:
        """Return the number of jobs to which nothing more happens."""
        return sum(count for state, count in self.states.items() if JobState(state).is_final)


def sweep_progress(session: Session, sweep_id: int | None = None) -> list[SweepProgress]:
    """Return every sweep (or one) with its jobs counted by state, newest first."""
    query = (
        select(SweepRow.id, SweepRow.name, SweepRow.submitted_at, JobRow.state, func.count())
        .join(SweepJobRow, SweepJobRow.sweep_id == SweepRow.id)
        .join(JobRow, JobRow.id == SweepJobRow.job_id)
        .group_by(SweepRow.id, SweepRow.name, SweepRow.submitted_at, JobRow.state)
        .order_by(SweepRow.id.desc())
    )
    if sweep_id is not None:
        query = query.where(SweepRow.id == sweep_id)
    counts: dict[tuple[int, str, float], Counter[str]] = {}
    for identity, name, submitted_at, state, count in session.execute(query):
        counts.setdefault((identity, name, submitted_at), Counter())[state] = count
    return [SweepProgress(*sweep, dict(states)) for sweep, states in counts.items()]


@dataclass(frozen=True)
class JobSummary:
    """One job as `farm status` lists it. samples: how many its latest attempt has stored."""

    id: int
    state: str
    selector: str
    build: str
    target_name: str
    draft_name: str | None
    kind: str
    n_max: int
    temperature: float
    category: str
    attempts: int
    machine: str | None
    error_kind: str | None
    error_message: str | None
    samples: int
    is_calibration: bool


def job_summaries(
    session: Session, sweep_id: int | None = None, states: Sequence[JobState] = ()
) -> list[JobSummary]:
    """Return jobs in order of id, of one sweep or in certain states when asked."""
    target, draft = aliased(ModelFileRow), aliased(ModelFileRow)
    samples = (
        select(func.count())
        .where(SampleRow.job_id == JobRow.id, SampleRow.epoch == JobRow.lease_epoch)
        .correlate(JobRow)
        .scalar_subquery()
    )
    conditions: list[ColumnElement[bool]] = []
    if states:
        conditions.append(JobRow.state.in_(states))
    if sweep_id is not None:
        in_sweep = select(SweepJobRow.job_id).where(SweepJobRow.sweep_id == sweep_id)
        conditions.append(JobRow.id.in_(in_sweep))
    query = (
        select(
            JobRow.id,
            JobRow.state,
            JobRow.selector,
            JobRow.build,
            target.name,
            draft.name,
            JobRow.kind,
            JobRow.n_max,
            JobRow.temperature,
            JobRow.category,
            JobRow.attempts,
            MachineRow.name,
            JobRow.error_kind,
            JobRow.error_message,
            samples,
            target.is_calibration,
        )
        .join(target, target.digest == JobRow.target_digest)
        .outerjoin(draft, draft.digest == JobRow.draft_digest)
        .outerjoin(MachineRow, MachineRow.id == JobRow.lease_machine_id)
        .where(*conditions)
        .order_by(JobRow.id)
    )
    return [JobSummary(*tuple(row)) for row in session.execute(query)]


@dataclass(frozen=True)
class MachineSummary:
    """One registered machine and what it can run."""

    id: int
    name: str
    kind: str
    hardware: str
    facts: dict[str, Any]
    engines: list[str]
    builds: list[str]
    last_seen_at: float


def machine_summaries(session: Session) -> list[MachineSummary]:
    """Return the registered machines by name."""
    rows = session.execute(
        select(
            MachineRow.id,
            MachineRow.name,
            HardwareProfileRow.kind,
            HardwareProfileRow.label,
            HardwareProfileRow.facts,
            MachineRow.engines,
            MachineRow.builds,
            MachineRow.last_seen_at,
        )
        .join(HardwareProfileRow, HardwareProfileRow.key == MachineRow.hardware_key)
        .order_by(MachineRow.name)
    )
    return [MachineSummary(*tuple(row)) for row in rows]


def job_keys_present(session: Session, keys: Sequence[str]) -> set[str]:
    """Return which of the job keys are stored already."""
    return set(session.scalars(select(JobRow.key).where(JobRow.key.in_(keys))))


def decode_speeds(session: Session, target_digests: Sequence[str]) -> dict[str, float]:
    """Return the baseline decode speed of one user measured so far, in tok/s, by target digest.

    What had neighbours is left out, and so is whatever belongs to a what-if.
    """
    at_once = JobRow.spec[("settings", "concurrent_requests")].as_integer()
    what_if = JobRow.spec[("speculation", "what_if")].as_string()
    rows = session.execute(
        select(
            JobRow.target_digest,
            func.sum(SampleRow.generated_tokens - 1)
            / func.nullif(func.sum(SampleRow.decode_ms), 0.0)
            * 1000.0,
        )
        .join(SampleRow, SampleRow.job_id == JobRow.id)
        .where(
            JobRow.target_digest.in_(target_digests),
            SampleRow.arm == "baseline",
            SampleRow.generated_tokens > 1,
            func.coalesce(at_once, 1) == 1,
            what_if.is_(None),
        )
        .group_by(JobRow.target_digest)
    )
    return {digest: float(speed) for digest, speed in rows if speed}


def attempted_key(session: Session, job_id: int, epoch: int) -> str | None:
    """Return the job's key where it had an attempt of that epoch, else None."""
    return session.scalar(
        select(JobRow.key)
        .join(AttemptRow, AttemptRow.job_id == JobRow.id)
        .where(JobRow.id == job_id, AttemptRow.epoch == epoch)
    )


def sweep_environments(session: Session, sweep_id: int) -> list[dict[str, Any]]:
    """Return what the machines read of themselves before each of a sweep's finished jobs."""
    rows = session.scalars(
        select(AttemptRow.environment_before)
        .join(SweepJobRow, SweepJobRow.job_id == AttemptRow.job_id)
        .where(SweepJobRow.sweep_id == sweep_id, AttemptRow.outcome == "done")
    )
    return [environment for environment in rows if environment]
