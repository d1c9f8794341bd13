"""Is a speculative output still the target's own? Three findings, never mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from farm.domain.measurement import Parity

# Verifying K+1 tokens in one pass sums in another order than one token at a time, which moves
# logits by rounding alone. Where the baseline's best two tokens lie closer than this, rounding
# can swap them; a wider gap needs another explanation.
NEAR_TIE_LOGITS = 0.25


class Cause(StrEnum):
    """What the control says of a speculative output that parted from the baseline's.

    The control scores the baseline's own text in wide passes, as a verification does, without any
    speculation. ARITHMETIC: it picks there what the speculative arm emitted, so that wide passes
    alone explain it. UNEXPLAINED: it picks another token, and a mismatch is an error of
    speculation. UNKNOWN: there was no control.
    """

    ARITHMETIC = "arithmetic"
    UNEXPLAINED = "unexplained"
    UNKNOWN = "unknown"


def explain(emitted_token: int | None, control_token: int | None) -> Cause:
    """Name the cause of a divergence.

    emitted_token: the speculative arm's at the divergence, None where its text had ended.
    control_token: the control's best token there, None where there was no control.
    """
    if control_token is None:
        return Cause.UNKNOWN
    return Cause.ARITHMETIC if emitted_token == control_token else Cause.UNEXPLAINED


def first_divergence(baseline: Sequence[int], speculative: Sequence[int]) -> int | None:
    """Return the first index at which two token sequences differ, None where they are equal.

    A sequence that ends early diverges at its end.
    """
    for index, (left, right) in enumerate(zip(baseline, speculative, strict=False)):
        if left != right:
            return index
    if len(baseline) != len(speculative):
        return min(len(baseline), len(speculative))
    return None


def classify(divergence: int | None, margin_logits: float | None) -> Parity:
    """Name the finding of one greedy pair of outputs.

    margin_logits: the reference's top-2 logit gap at the divergence; unknown counts as a
    mismatch, since nothing excuses it.
    """
    if divergence is None:
        return Parity.EXACT
    if margin_logits is not None and margin_logits < NEAR_TIE_LOGITS:
        return Parity.NEAR_TIE
    return Parity.MISMATCH
