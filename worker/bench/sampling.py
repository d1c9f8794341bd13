"""Drawing tokens from logits, and accepting drafted ones without changing the target's law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Law = NDArray[np.float32]

# In `draw`: two short running sums beat one over a vocabulary longer than this.
UNDIVIDED_TOKENS = 8192
BLOCK_TOKENS = 512

# llama.cpp judges a drafted token by its share among this many best ones
# (common/speculative.cpp, draft-simple: sampler top_k 10).
P_MIN_TOP_TOKENS = 10


def softmax(logits: Logits, temperature: float) -> Law:
    """Return the next-token law [vocabulary] at a temperature above 0, as exact as its logits."""
    law: Law = logits - np.maximum.reduce(logits)
    law *= np.float32(1.0 / temperature)
    np.exp(law, out=law)
    law *= np.float32(1.0) / np.add.reduce(law)
    return law


def draw(law: Law, rng: np.random.Generator) -> int:
    """Return a token drawn from a law; weights need not sum to 1.

    From a large vocabulary a block of tokens is drawn first and then one of the block: a running
    sum over all of it would cost more than the law itself.
    """
    share, start = rng.random(), 0
    if len(law) > UNDIVIDED_TOKENS:
        blocks = np.add.reduceat(law, np.arange(0, len(law), BLOCK_TOKENS))
        block, share = _pick(blocks, share)
        start = block * BLOCK_TOKENS
        law = law[start : start + BLOCK_TOKENS]
    return start + _pick(law, share)[0]


def _pick(weights: Law, share: float) -> tuple[int, float]:
    """Return in whose weight a share of them all ends, and what share of that weight it takes."""
    cumulative = np.add.accumulate(weights, dtype=np.float64)
    total = float(cumulative[-1])
    # Rounding can put the point at the very end, behind which tokens without mass may lie.
    point = min(share * total, math.nextafter(total, 0.0))
    index = int(cumulative.searchsorted(point, "right"))
    before = float(cumulative[index - 1]) if index else 0.0
    return index, (point - before) / float(weights[index])


def top_share(logits: Logits) -> float:
    """Return the best token's probability among the P_MIN_TOP_TOKENS best."""
    count = min(P_MIN_TOP_TOKENS, len(logits))
    best = np.partition(logits, len(logits) - count)[-count:].astype(np.float64)
    return float(1.0 / np.exp(best - best.max()).sum())


def top_two_gap(logits: Logits) -> float:
    """Return by how much the best logit is above the second best."""
    second, first = np.partition(logits, len(logits) - 2)[-2:]
    return float(first - second)


@dataclass(frozen=True)
class Verdict:
    """How a round ended: `accepted` drafted tokens kept, then `token` of the target's own."""

    accepted: int
    token: int


class Greedy:
    """Temperature 0: the best token, on every path."""

    drafts_law = False

    def pick(self, logits: Logits) -> int:
        """Return the target's next token."""
        return int(logits.argmax())

    def propose(self, logits: Logits) -> tuple[int, Law | None]:
        """Return the draft's next token."""
        return int(logits.argmax()), None

    def verify(self, logits: Logits, drafted: list[int], laws: list[Law | None]) -> Verdict:
        """Keep drafted tokens while the target picks the same. logits: [K + 1, vocabulary].

        Row by row: what follows the first that differs is never looked at.
        """
        for position, proposed in enumerate(drafted):
            token = self.pick(logits[position])
            if token != proposed:
                return Verdict(position, token)
        return Verdict(len(drafted), self.pick(logits[len(drafted)]))


class Match(Greedy):
    """llama.cpp's rule: the draft is greedy; keep a token while the target's sample equals it."""

    def __init__(self, temperature: float, rng: np.random.Generator) -> None:
        self._temperature = temperature
        self._rng = rng

    def pick(self, logits: Logits) -> int:
        """Return a token drawn from the target's law."""
        return draw(softmax(logits, self._temperature), self._rng)


class Exact(Match):
    """Speculative sampling (Leviathan et al., arXiv 2211.17192, algorithm 1).

    The draft draws x from q; x is kept with probability min(1, p(x) / q(x)), else a token is
    drawn from max(0, p - q). A one-hot q (prompt lookup) keeps x with probability p(x).
    """

    drafts_law = True

    def propose(self, logits: Logits) -> tuple[int, Law | None]:
        """Return a token drawn from the draft's law, and that law."""
        law = softmax(logits, self._temperature)
        return draw(law, self._rng), law

    def verify(self, logits: Logits, drafted: list[int], laws: list[Law | None]) -> Verdict:
        """Accept or resample position by position; one more token when all are accepted."""
        for position, (proposed, q) in enumerate(zip(drafted, laws, strict=True)):
            p = softmax(logits[position], self._temperature)
            likelihood = 1.0 if q is None else q[proposed]
            if self._rng.random() * likelihood < p[proposed]:
                continue
            return Verdict(position, draw(_residual(p, q, proposed), self._rng))
        return Verdict(len(drafted), self.pick(logits[len(drafted)]))


def _residual(p: Law, q: Law | None, proposed: int) -> Law:
    rest = p.copy()
    if q is None:
        rest[proposed] = 0.0
    else:
        shared = min(len(p), len(q))
        rest[:shared] -= q[:shared]
        np.maximum(rest, 0.0, out=rest)
    # Rounding alone can leave nothing where p equals q; then p is the answer.
    return rest if rest.sum() > 0.0 else p


def rule(temperature: float, accept: str, rng: np.random.Generator) -> Greedy:
    """Return the rule for a temperature and an accept rule's name ("exact" or "match")."""
    if temperature <= 0.0:
        return Greedy()
    return {"exact": Exact, "match": Match}[accept](temperature, rng)
