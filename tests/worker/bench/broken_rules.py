"""Accept rules as one might get them wrong; every check of a law has to refuse them."""

from __future__ import annotations

from worker.bench.sampling import Exact, Law, Logits, Verdict, draw, softmax


class InvertedRatio(Exact):
    """Accepts with min(1, q / p) instead of min(1, p / q)."""

    def verify(self, logits: Logits, drafted: list[int], laws: list[Law | None]) -> Verdict:
        """Accept what the draft likes more than the target."""
        for position, (proposed, q) in enumerate(zip(drafted, laws, strict=True)):
            p = softmax(logits[position], self._temperature)
            likelihood = 1.0 if q is None else q[proposed]
            if self._rng.random() * p[proposed] < likelihood:
                continue
            return Verdict(position, draw(p, self._rng))
        return Verdict(len(drafted), self.pick(logits[len(drafted)]))


class NoResidual(Exact):
    """Accepts rightly, but draws from p itself after a rejection."""

    def verify(self, logits: Logits, drafted: list[int], laws: list[Law | None]) -> Verdict:
        """Count twice what the draft proposes and the target likes."""
        for position, (proposed, q) in enumerate(zip(drafted, laws, strict=True)):
            p = softmax(logits[position], self._temperature)
            likelihood = 1.0 if q is None else q[proposed]
            if self._rng.random() * likelihood < p[proposed]:
                continue
            return Verdict(position, draw(p, self._rng))
        return Verdict(len(drafted), self.pick(logits[len(drafted)]))


class AcceptAlways(Exact):
    """Takes every drafted token."""

    def verify(self, logits: Logits, drafted: list[int], laws: list[Law | None]) -> Verdict:
        """Let the draft speak."""
        return Verdict(len(drafted), self.pick(logits[len(drafted)]))


BROKEN_RULES = (InvertedRatio, NoResidual, AcceptAlways)
