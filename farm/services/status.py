"""How far sweeps are, and what stands in their way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from farm.domain.hardware import Hardware, Machine, MachineKind
from farm.domain.job import JobState
from farm.queue.routing import selectors_of
from farm.store.queries import (
    JobSummary,
    MachineSummary,
    SweepProgress,
    job_summaries,
    machine_summaries,
    sweep_environments,
    sweep_progress,
)

# llama.cpp's threads wait for each other at every step, so one busy core slows all of them.
DISTURBED_SHARE = 0.1


@dataclass(frozen=True)
class SweepStatus:
    """A sweep's progress. running: what is being measured now; remarks: failures and obstacles."""

    id: int
    name: str
    submitted_at: float
    total: int
    finished: int
    states: dict[str, int]
    running: str | None
    remarks: tuple[str, ...]


def sweep_statuses(session: Session) -> list[SweepStatus]:
    """Return every sweep's status, newest first."""
    machines = machine_summaries(session)
    return [_status(session, progress, machines) for progress in sweep_progress(session)]


def sweep_status(session: Session, sweep_id: int) -> SweepStatus | None:
    """Return one sweep's status, None where there is no such sweep."""
    found = sweep_progress(session, sweep_id)
    return _status(session, found[0], machine_summaries(session)) if found else None


def _status(
    session: Session, progress: SweepProgress, machines: list[MachineSummary]
) -> SweepStatus:
    unfinished = job_summaries(
        session, progress.id, (JobState.QUEUED, JobState.LEASED, JobState.FAILED)
    )
    leased = [job for job in unfinished if job.state == JobState.LEASED]
    return SweepStatus(
        id=progress.id,
        name=progress.name,
        submitted_at=progress.submitted_at,
        total=progress.total,
        finished=progress.finished,
        states=progress.states,
        running=_label(leased[0]) if leased else None,
        remarks=(
            *_failures(unfinished),
            *_obstacles(unfinished, machines),
            *_disturbances(sweep_environments(session, progress.id)),
        ),
    )


def _label(job: JobSummary) -> str:
    what = f"K={job.n_max}" if job.n_max else job.kind
    return f"{job.category} {what} on {job.machine}"


def _failures(unfinished: list[JobSummary]) -> list[str]:
    reasons = Counter(
        f"{'failed' if job.state == JobState.FAILED else 'will be tried again'}: "
        f"{job.error_message} ({job.error_kind})"
        for job in unfinished
        if job.error_kind and job.state != JobState.LEASED
    )
    return [f"{count} x {reason}" for reason, count in reasons.items()]


def _obstacles(unfinished: list[JobSummary], machines: list[MachineSummary]) -> list[str]:
    queued = Counter(
        (job.selector, job.build) for job in unfinished if job.state == JobState.QUEUED
    )
    return [
        f"{count} x waiting: no registered machine matches '{selector}' with build {build}; "
        "start one there with 'farm worker'"
        for (selector, build), count in queued.items()
        if not any(
            selector in selectors(machine) and build in machine.builds for machine in machines
        )
    ]


def _disturbances(environments: list[dict[str, Any]]) -> list[str]:
    shares = [environment.get("busy_share_of_others") for environment in environments]
    disturbed = sum(share is not None and share > DISTURBED_SHARE for share in shares)
    if not disturbed:
        return []
    return [
        f"{disturbed} of {len(shares)} jobs began while other programs used more than "
        f"{DISTURBED_SHARE:.0%} of the machine: speedups scatter more and intervals are wider"
    ]


def selectors(machine: MachineSummary) -> tuple[str, ...]:
    """Return the machine selectors that a registered machine satisfies."""
    facts = machine.facts | {"kind": MachineKind(machine.kind), "gpus": ()}
    return selectors_of(Machine(machine.name, Hardware(**facts)))
