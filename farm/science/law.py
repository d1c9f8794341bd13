"""Do emitted tokens follow a law that is known exactly?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc

ALARM = 1e-6
"""Below this p-value tokens are said not to follow the law."""

LEAST_EXPECTED = 20.0
"""Rarer cells are pooled. The tail of so few counts is longer than chi-square's: a correct decoder
falls below ALARM with a probability of up to 1e-5 (summed exactly for two cells)."""


def law_p_value(cells: ArrayLike, laws: ArrayLike) -> float | None:
    """Return the chance that tokens of the law fit it no better than these do.

    cells: (tokens,), the cell each emitted token fell in. laws: (tokens, cells), the probability
    of each cell given the token before; rows sum to 1 and leave every token some choice. Each
    token is a draw of one given the one before it, so the differences from what is expected add up
    as a martingale with the covariance sum(diag(p) - p p^T), and their Mahalanobis distance is
    chi-square. A token in a cell of probability 0 has no chance. None where no two cells have
    LEAST_EXPECTED.
    """
    law = np.asarray(laws, np.float64)
    expected = law.sum(axis=0)
    seen = np.bincount(np.asarray(cells, np.int64), minlength=len(expected))
    if seen[expected == 0].any():
        return 0.0
    alone = _alone(expected)
    if not len(alone):
        return None
    surplus = (seen - expected)[alone]
    covariance = np.diag(expected[alone]) - law[:, alone].T @ law[:, alone]
    distance = surplus @ np.linalg.solve(covariance, surplus)
    return float(chdtrc(len(alone), distance))


def _alone(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the cells that are counted for themselves; all others are one more cell together."""
    order = np.argsort(-expected, kind="stable")
    rest = expected.sum() - expected[order].cumsum()
    stands = (expected[order] >= LEAST_EXPECTED) & (rest >= LEAST_EXPECTED)
    found: NDArray[np.int64] = order[stands]
    return found
