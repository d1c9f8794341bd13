"""One job's result with all that shaped it, and what differs between two."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.orm import Session

from farm.domain.job import JobSpec, JobState
from farm.domain.provenance import Provenance, differences
from farm.errors import UserError
from farm.services.recommend import CurvePoint, Setup, findings
from farm.store.attempts import JobAttempt, job_attempt
from farm.store.queries import job_specs

Differences = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class JobResult:
    """A finished job: what was asked, what came out, and what its attempt recorded."""

    spec: JobSpec
    setup: Setup
    point: CurvePoint
    attempt: JobAttempt

    @property
    def readings(self) -> dict[str, Any]:
        """Return what the machine read of itself before and after."""
        attempt = self.attempt
        return {
            "before": attempt.environment_before or {},
            "after": attempt.environment_after or {},
        }

    @property
    def asked(self) -> dict[str, Any]:
        """Return the spec without paths, the prompts by their digest."""
        payload = self.spec.to_payload() | {"prompts": self.spec.prompts_digest}
        for role in ("target", "draft"):
            payload[role] = payload[role] and {
                k: v for k, v in payload[role].items() if k != "path"
            }
        return payload

    def to_payload(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        provenance = self.attempt.provenance
        return asdict(self.attempt) | {
            "spec": self.spec.to_payload(),
            "result": asdict(self.point),
            "conditions": provenance and provenance.conditions.digest,
            "provenance": provenance and provenance.to_payload(),
        }


@dataclass(frozen=True)
class Comparison:
    """What differs between two results, by dotted name: (of a, of b), None for what one lacks.

    comparable: both ran under the same conditions on the same prompts; None where one of them was
    measured before conditions were recorded. speculative: what the arm in question decoded with.
    """

    comparable: bool | None
    asked: Differences
    conditions: Differences
    speculative: Differences
    readings: Differences


def job_result(session: Session, job_id: int) -> JobResult:
    """Return a finished job's result. Raises UserError where there is none, saying why."""
    attempt = job_attempt(session, job_id)
    if attempt is None:
        raise UserError(
            f"There is no job {job_id}; 'farm results' lists the jobs behind each configuration."
        )
    if attempt.state is JobState.FAILED:
        raise UserError(
            f"Job {job_id} failed ({attempt.error_kind}) and has no result: {attempt.error_message}"
        )
    judged = findings(session, job_id=job_id)
    found = judged.recommendations or judged.what_ifs
    if attempt.state is not JobState.DONE or not found:
        raise UserError(
            f"Job {job_id} is {attempt.state} and has no result; 'farm status' says how far its "
            "sweep is."
        )
    spec = job_specs(session, [job_id])[job_id]
    return JobResult(spec, found[0].setup, found[0].curve[0], attempt)


def compare(a: JobResult, b: JobResult) -> Comparison:
    """Say what differs between two results, and whether they may be compared at all."""
    provenance_a, provenance_b = a.attempt.provenance, b.attempt.provenance
    comparable, conditions, speculative = None, {}, {}
    if provenance_a and provenance_b:
        same_engine = provenance_a.conditions.engine == provenance_b.conditions.engine
        conditions = differences(
            _conditions(provenance_a, same_engine), _conditions(provenance_b, same_engine)
        )
        comparable = not conditions
        speculative = differences(
            _rest(provenance_a, same_engine), _rest(provenance_b, same_engine)
        )
    return Comparison(
        comparable=comparable,
        asked=differences(a.asked, b.asked),
        conditions=conditions,
        speculative=speculative,
        readings=differences(a.readings, b.readings),
    )


def _conditions(found: Provenance, with_parameters: bool) -> dict[str, Any]:
    """Return conditions and prompts; the parameters of two engines have no names in common."""
    facts = asdict(found.conditions) | {"prompts": found.prompts}
    return facts if with_parameters else facts | {"parameters": {}}


def _rest(found: Provenance, with_parameters: bool) -> dict[str, Any]:
    rest = {"draft_digest": found.draft_digest, "farm_version": found.farm_version}
    return rest | found.speculative if with_parameters else rest
