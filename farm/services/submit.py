"""Putting a plan into SQL: all of it or nothing, and never the same job twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from farm.domain.job import JobSpec, JobState
from farm.errors import UserError
from farm.services.plan import Plan
from farm.store import jobs
from farm.store.clock import now
from farm.store.database import writing
from farm.store.insert import insert_missing
from farm.store.schema import (
    JobRow,
    ModelFileRow,
    PromptRow,
    PromptSetRow,
    SweepJobRow,
    SweepRow,
)


@dataclass(frozen=True)
class Submission:
    """What a submission did. existing: jobs that were there before, from whatever sweep."""

    sweep_id: int
    total: int
    new: int
    existing: int
    requeued: int


def submit(engine: Engine, plan: Plan, *, retry_failed: bool = False) -> Submission:
    """Store a plan in one transaction; jobs already known are linked, not added.

    retry_failed queues this sweep's failed and cancelled jobs again. Raises UserError where a
    pair was refused or no job is left: then nothing is stored.
    """
    if plan.refusals:
        refusal = plan.refusals[0]
        raise UserError(
            f"{refusal.target} and {refusal.draft} can't speculate together: "
            f"{'; '.join(refusal.reasons)}. Take the draft out of the sweep; 'farm compat' checks "
            "any two files. Nothing was submitted."
        )
    if not plan.jobs:
        raise UserError("The sweep expands to no job. Nothing was submitted.")
    with writing(engine) as session:
        submitted_at = session.scalars(select(now())).one()
        _store_inputs(session, plan)
        sweep_id = _sweep_id(session, plan, submitted_at)
        before = _job_ids(session, plan.jobs)
        insert_missing(
            session,
            JobRow,
            [_row(spec, submitted_at) for spec in plan.jobs if spec.key not in before],
        )
        ids = _job_ids(session, plan.jobs)
        insert_missing(
            session,
            SweepJobRow,
            [{"sweep_id": sweep_id, "job_id": ids[spec.key]} for spec in plan.jobs],
        )
        requeued = jobs.requeue(session, list(before.values())) if retry_failed else 0
    return Submission(
        sweep_id=sweep_id,
        total=len(plan.jobs),
        new=len(ids) - len(before),
        existing=len(before),
        requeued=requeued,
    )


def _store_inputs(session: Session, plan: Plan) -> None:
    insert_missing(
        session,
        ModelFileRow,
        [
            {
                "digest": digest,
                "name": model.ref.name,
                "architecture": model.architecture,
                "size_bytes": model.size_bytes,
                "parameter_count": model.parameter_count,
                "is_calibration": model.is_calibration,
            }
            for digest, model in plan.models.items()
        ],
    )
    insert_missing(
        session,
        PromptRow,
        [
            {"digest": prompt.digest, "category": prompt.category, "text": prompt.text}
            for prompt in plan.prompts
        ],
    )
    insert_missing(
        session,
        PromptSetRow,
        [
            {
                "digest": plan.prompt_set.digest,
                "name": plan.prompt_set.name,
                "prompt_digests": [prompt.digest for prompt in plan.prompt_set.prompts],
            }
        ],
    )


def _sweep_id(session: Session, plan: Plan, submitted_at: float) -> int:
    """Return the sweep's id; a sweep is its name and its jobs, so the same one is found again."""
    content = "\n".join([plan.name, *(spec.key for spec in plan.jobs)])
    digest = hashlib.sha256(content.encode()).hexdigest()
    insert_missing(
        session,
        SweepRow,
        [
            {
                "digest": digest,
                "name": plan.name,
                "source": plan.source,
                "prompt_set_digest": plan.prompt_set.digest,
                "submitted_at": submitted_at,
            }
        ],
    )
    return session.scalars(select(SweepRow.id).where(SweepRow.digest == digest)).one()


def _job_ids(session: Session, specs: Iterable[JobSpec]) -> dict[str, int]:
    keys = {spec.key for spec in specs}
    rows = session.execute(select(JobRow.key, JobRow.id).where(JobRow.key.in_(keys)))
    return {row.key: row.id for row in rows}


def _row(spec: JobSpec, created_at: float) -> dict[str, object]:
    return {
        "key": spec.key,
        "pair_key": spec.pair_key,
        "spec": spec.to_payload(),
        "selector": spec.machine,
        "engine": spec.engine,
        "build": spec.build,
        "target_digest": spec.target.digest,
        "draft_digest": spec.draft.digest if spec.draft else None,
        "kind": spec.speculation.kind.value,
        "n_max": spec.speculation.n_max,
        "p_min": spec.speculation.p_min,
        "accept": spec.speculation.accept.value,
        "temperature": spec.sampling.temperature,
        "category": spec.category,
        "state": JobState.QUEUED.value,
        "attempts": 0,
        "not_before": 0.0,
        "created_at": created_at,
        "lease_epoch": 0,
    }
