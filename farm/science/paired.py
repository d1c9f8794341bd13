"""Paired comparison of two arms measured on the same prompts, in the same session."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

MIN_PAIRS = 3


@dataclass(frozen=True)
class Interval:
    """A ratio with its confidence interval; `pairs` is how many prompts it rests on."""

    estimate: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.estimate:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def ratio_interval(
    log_ratios: Sequence[float], *, confidence: float = 0.95, comparisons: int = 1
) -> Interval | None:
    """Return the geometric mean of ratios with a t interval over its logarithms.

    log_ratios: one ln(speculative / baseline) per prompt. comparisons: how many such intervals
    are looked at together (every K of a curve): the level is Bonferroni's, so that picking the
    best of them keeps the promised coverage. None under MIN_PAIRS prompts.
    """
    n = len(log_ratios)
    if n < MIN_PAIRS:
        return None
    mean = math.fsum(log_ratios) / n
    variance = math.fsum((value - mean) ** 2 for value in log_ratios) / (n - 1)
    tail = (1 - confidence) / (2 * comparisons)
    half = float(stdtrit(n - 1, 1 - tail)) * math.sqrt(variance / n)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n)
