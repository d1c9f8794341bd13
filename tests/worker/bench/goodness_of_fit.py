"""Chi-square goodness of fit, for counts over cells of known probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ALARM = 1e-6
"""Significance of every check: a correct rule fails one with this probability per seed."""

LEAST_EXPECTED = 5.0


def p_value(counts: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the chance that a sample of the law fits it no better than these counts do.

    counts and probabilities: (cells,), probabilities summing to 1; a count in a cell of
    probability 0 has no chance. Cells with fewer than LEAST_EXPECTED expected counts are pooled.
    """
    return p_value_in_strata([counts], [probabilities])


def p_value_in_strata(counts: list[ArrayLike], probabilities: list[ArrayLike]) -> float:
    """Return `p_value` over several multinomial samples at once, each with its own law."""
    statistic, freedom = 0.0, 0
    for seen_in, law_in in zip(counts, probabilities, strict=True):
        seen, law = np.asarray(seen_in, float), np.asarray(law_in, float)
        if seen[law == 0].sum() > 0:
            return 0.0
        if seen.sum() == 0:
            continue
        expected = law * seen.sum()
        rare = expected < LEAST_EXPECTED
        cells = [(seen[~rare], expected[~rare]), (seen[rare].sum(), expected[rare].sum())]
        for observed, wanted in cells:
            if np.sum(wanted) > 0:
                statistic += float(np.sum((observed - wanted) ** 2 / wanted))
                freedom += np.size(wanted)
        freedom -= 1
    return float(stats.chi2.sf(statistic, freedom)) if freedom > 0 else 1.0


def fits(counts: ArrayLike, probabilities: ArrayLike) -> bool:
    """Say whether the counts may be a sample of the law, at significance ALARM."""
    return p_value(counts, probabilities) >= ALARM
