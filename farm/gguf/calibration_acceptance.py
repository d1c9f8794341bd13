"""Exact acceptance of a pair whose laws are known as transition matrices.

A round starts at the last token both models have seen. Split the target's matrix into what a
draft gets accepted (M) and what replaces a rejected draft (R); with K drafts the next round
starts after sum_j M^j R (j < K accepted, then one of the target's own) or M^K P (all accepted,
then the bonus token). The stationary law of that chain weighs the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farm.domain.decoding import AcceptRule
from farm.errors import UserError

_SQUARINGS = 40
"""2^40 steps of the lazy chain: far past mixing for rings of up to 512 states."""

_CONVERGED = 1e-13


@dataclass(frozen=True)
class ExpectedAcceptance:
    """Acceptance of a long run.

    accepted_at[i] is the probability that a round accepts its (i+1)-th draft (and so all before
    it). rate is accepted / drafted, tokens_per_round counts the target's own token too.
    """

    n_max: int
    accepted_at: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Return accepted drafts / drafted tokens."""
        return sum(self.accepted_at) / self.n_max

    @property
    def tokens_per_round(self) -> float:
        """Return the mean accepted length, the target's own token included."""
        return 1.0 + sum(self.accepted_at)


@dataclass(frozen=True)
class RoundCounts:
    """What one run counts: rounds that drafted, their drafts, and how many were accepted.

    target_passes counts the passes after the prompt's own, those without a draft included.
    """

    rounds: int
    target_passes: int
    drafted: int
    accepted: int
    drafted_per_position: tuple[int, ...]
    accepted_per_position: tuple[int, ...]


def expect(
    target: NDArray[np.float64], draft: NDArray[np.float64], n_max: int, accept: AcceptRule
) -> ExpectedAcceptance:
    """Return the exact acceptance of drafting `n_max` tokens per round.

    target and draft: (n, n) transition matrices over one closed set of states, rows summing to 1.
    With rule `match` the draft proposes its argmax; with `exact` it samples (Leviathan et al.,
    arXiv 2211.17192). Where the chain never mixes (temperature 0) the start is uniform.
    """
    if n_max < 1:
        raise UserError(f"At least one token must be drafted per round, not {n_max}.")
    if accept == AcceptRule.MATCH:
        proposed = np.zeros_like(draft)
        proposed[np.arange(len(draft)), draft.argmax(axis=1)] = 1.0
        accepted = target * proposed
    else:
        accepted = np.minimum(target, draft)
    replaced = target - accepted
    reach = np.eye(len(target))
    next_start = np.zeros_like(target)
    survival = []
    for _ in range(n_max):
        next_start += reach @ replaced
        reach = reach @ accepted
        survival.append(reach.sum(axis=1))
    next_start += reach @ target
    weights = stationary(next_start)
    return ExpectedAcceptance(n_max, tuple(float(weights @ row) for row in survival))


def stationary(chain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the long-run share of time in each state, from a uniform start.

    Repeated squaring of the lazy chain (half a step at a time): its limit is the time average of
    the chain itself even where that one is periodic.
    """
    n = len(chain)
    power = (chain + np.eye(n)) / 2
    weights = np.full(n, 1.0 / n)
    updated = weights
    for _ in range(_SQUARINGS):
        power = power @ power
        power /= power.sum(axis=1, keepdims=True)
        updated = power.mean(axis=0)
        if np.abs(updated - weights).max() < _CONVERGED:
            break
        weights = updated
    return updated


def greedy_counts(
    agrees: Sequence[bool], n_tokens: int, n_max: int, *, cap_last: bool
) -> RoundCounts:
    """Count the rounds of a greedy run from where the draft agrees along it.

    agrees[i]: whether the draft's argmax after the i-th generated token is the target's, for at
    least n_tokens + n_max tokens. See `Law.greedy_rounds` for `cap_last`.
    """
    done, passes = 1, 0
    drafted = [0] * n_max
    accepted = [0] * n_max
    while done < n_tokens:
        passes += 1
        width = min(n_max, n_tokens - done - 1) if cap_last else n_max
        for position in range(width):
            drafted[position] += 1
        run = 0
        while run < width and agrees[done - 1 + run]:
            accepted[run] += 1
            run += 1
        done += run + 1
    return RoundCounts(
        rounds=drafted[0],
        target_passes=passes,
        drafted=sum(drafted),
        accepted=sum(accepted),
        drafted_per_position=tuple(drafted),
        accepted_per_position=tuple(accepted),
    )
