"""Samples in: written as they come, under the lease, and harmless when written twice."""

from __future__ import annotations

from sqlalchemy.orm import Session

from farm.domain.measurement import Sample
from farm.store.arrays import pack
from farm.store.insert import insert_missing
from farm.store.jobs import Claim, holds
from farm.store.schema import SampleRow


def add_samples(session: Session, claim: Claim, samples: list[Sample]) -> bool:
    """Store samples of a claimed job; False when the lease was lost, and then nothing is stored.

    The key (job, epoch, prompt, repeat, arm) makes a second write of the same sample do nothing.
    """
    if not holds(session, claim):
        return False
    _insert(session, claim.job_id, claim.epoch, samples)
    return True


def add_late_samples(session: Session, job_id: int, epoch: int, samples: list[Sample]) -> None:
    """Store samples of an attempt that is over; they count as that attempt's, not the job's."""
    _insert(session, job_id, epoch, samples)


def _insert(session: Session, job_id: int, epoch: int, samples: list[Sample]) -> None:
    insert_missing(session, SampleRow, [_row(job_id, epoch, sample) for sample in samples])


def _row(job_id: int, epoch: int, sample: Sample) -> dict[str, object]:
    return {
        "job_id": job_id,
        "epoch": epoch,
        "prompt_digest": sample.prompt_digest,
        "repeat": sample.repeat,
        "arm": sample.arm.value,
        "prompt_tokens": sample.prompt_tokens,
        "generated_tokens": sample.generated_tokens,
        "prompt_ms": sample.prompt_ms,
        "draft_prompt_ms": sample.draft_prompt_ms,
        "decode_ms": sample.decode_ms,
        "draft_ms": sample.draft_ms,
        "verify_ms": sample.verify_ms,
        "rounds": sample.rounds,
        "drafted": sample.drafted,
        "accepted": sample.accepted,
        "output_digest": sample.output_digest,
        "peak_rss_bytes": sample.peak_rss_bytes,
        "parity": sample.parity.value,
        "first_divergence": sample.first_divergence,
        "margin_logits": sample.margin_logits,
        "control_token": sample.control_token,
        "arrays": pack(
            {
                "output_ids": sample.output_ids,
                "accepted_per_position": sample.accepted_per_position,
                "drafted_per_position": sample.drafted_per_position,
            }
        ),
    }
