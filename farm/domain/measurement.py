"""What one run of one prompt on one arm yields."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from farm.domain.job import Arm


class Parity(StrEnum):
    """How an output compares with its reference at temperature 0.

    A speculative output's reference is the baseline's. A baseline's, where settings are lossy, is
    the unmodified target's. Above temperature 0 two correct outputs differ: NOT_COMPARED. A text
    under a made-up acceptance (`WhatIf`) is never the target's own: NOT_VALID.
    """

    EXACT = "exact"
    NEAR_TIE = "near-tie"
    MISMATCH = "mismatch"
    NOT_COMPARED = "not-compared"
    NOT_VALID = "not-valid"


@dataclass(frozen=True)
class Sample:
    """One run. Times are wall-clock milliseconds inside the decoding process.

    decode_ms covers the tokens after the first (the first comes out of the prompt's own pass),
    so decode tok/s is (generated_tokens - 1) / decode_ms * 1000. accepted_per_position[i] counts
    rounds whose (i+1)-th drafted token was accepted. For a baseline the speculative counts are 0
    and the arrays empty. None is what the engine does not report, never 0. first_divergence is an
    index into output_ids, None where equal or not compared; margin_logits is the reference's top-2
    logit gap there, and control_token the target's best token there when the baseline's own text
    is scored in passes as wide as a verification. Where a server returns no ids, output_ids is
    empty, output_digest is over the text in UTF-8 and first_divergence counts its code points.
    """

    prompt_digest: str
    repeat: int
    arm: Arm
    prompt_tokens: int
    generated_tokens: int
    prompt_ms: float
    draft_prompt_ms: float | None
    decode_ms: float
    draft_ms: float | None
    verify_ms: float | None
    rounds: int | None
    drafted: int | None
    accepted: int | None
    accepted_per_position: tuple[int, ...] | None
    drafted_per_position: tuple[int, ...] | None
    output_ids: tuple[int, ...]
    output_digest: str
    peak_rss_bytes: int | None
    parity: Parity
    first_divergence: int | None
    margin_logits: float | None
    control_token: int | None = None

    @property
    def decode_tok_s(self) -> float | None:
        """Return decode speed in tokens per second, None where nothing was decoded."""
        if self.generated_tokens < 2 or self.decode_ms <= 0:
            return None
        return (self.generated_tokens - 1) / self.decode_ms * 1000.0

    @property
    def acceptance_rate(self) -> float | None:
        """Return accepted / drafted, None where nothing was drafted."""
        if self.accepted is None or not self.drafted:
            return None
        return self.accepted / self.drafted
