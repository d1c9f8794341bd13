"""Where drafted tokens come from. One contract: begin, propose, keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from worker.bench.llama import Context
from worker.bench.sampling import Greedy, Law, top_share


@dataclass
class Proposal:
    """Drafted tokens and, where they were drawn from a law, that law per token."""

    tokens: list[int] = field(default_factory=list)
    laws: list[Law | None] = field(default_factory=list)


class Drafter(Protocol):
    """A source of drafted tokens for one sequence."""

    def begin(self, prompt: list[int]) -> None:
        """Start a new sequence with its prompt."""

    def propose(self, tokens: list[int], n_max: int) -> Proposal:
        """Draft up to n_max tokens to follow `tokens`, the whole sequence so far."""

    def keep(self, length: int) -> None:
        """Learn that only the first `length` tokens of what was proposed upon still stand."""


class ModelDrafter:
    """A draft model, one step per token (llama.cpp's draft-simple).

    Drafting stops early where the draft's best token has less than p_min among its ten best, as
    llama.cpp does. The test looks at the best token and never at the one drawn: judging the drawn
    one would bend the law it was drawn from. So would throwing drawn tokens away because of what
    follows them: n_min discards greedy drafts only, and keeps drawn ones however few they are.
    """

    def __init__(
        self, context: Context, rule: Greedy, target_vocab: int, p_min: float, n_min: int
    ) -> None:
        self._context = context
        self._rule = rule
        self._vocab = target_vocab
        self._p_min = p_min
        self._n_min = n_min

    def begin(self, prompt: list[int]) -> None:
        """Clear the cache and read the prompt but its last token, which `propose` feeds."""
        self._context.clear()
        if len(prompt) > 1:
            self._context.prefill(self._known(prompt[:-1]))

    def propose(self, tokens: list[int], n_max: int) -> Proposal:
        """Draft step by step; fewer than n_min greedy tokens count as none."""
        proposal = Proposal()
        if n_max < self._n_min:
            return proposal
        fed = self._known(tokens[self._context.length :])
        while len(proposal.tokens) < n_max:
            # A draft may know up to 128 tokens more than its target, which could not read them.
            last = self._context.step(fed[0]) if len(fed) == 1 else self._context.prefill(fed)
            logits = last[: self._vocab]
            if self._p_min > 0.0 and top_share(logits) < self._p_min:
                break
            token, law = self._rule.propose(logits)
            proposal.tokens.append(token)
            proposal.laws.append(law)
            fed = [token]
        enough = self._rule.drafts_law or len(proposal.tokens) >= self._n_min
        return proposal if enough else Proposal()

    def keep(self, length: int) -> None:
        """Drop rejected tokens from the draft's cache."""
        self._context.roll_back(length)

    def _known(self, tokens: list[int]) -> list[int]:
        """Return tokens the draft can read. A target may know up to 128 more; what stands in for
        one of those can only cost acceptance, never change the output."""
        last = self._context.vocab_tokens - 1
        return [min(token, last) for token in tokens]


class PromptLookup:
    """Draft what followed the latest earlier occurrence of the last tokens (no model).

    The longest matching suffix from LONGEST down to SHORTEST tokens wins. Proposals are certain
    (one-hot q). Prompt lookup decoding, Saxena 2023.
    """

    LONGEST = 3
    SHORTEST = 1

    def __init__(self, n_min: int) -> None:
        self._n_min = n_min
        self._last: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, prompt: list[int]) -> None:
        """Forget the sequence before."""
        self._last.clear()
        self._indexed = 0

    def propose(self, tokens: list[int], n_max: int) -> Proposal:
        """Return the continuation of the longest suffix seen before, if any."""
        self._index(tokens)
        for size in range(self.LONGEST, self.SHORTEST - 1, -1):
            start = self._last.get(tuple(tokens[-size:])) if len(tokens) > size else None
            if start is not None:
                found = tokens[start : start + n_max]
                if len(found) >= max(self._n_min, 1):
                    return Proposal(found, [None] * len(found))
        return Proposal()

    def keep(self, length: int) -> None:
        """Nothing to undo: only tokens that stand are ever indexed."""

    def _index(self, tokens: list[int]) -> None:
        """Note where each n-gram was last followed by something, up to the last token but one."""
        for end in range(max(self._indexed, 1), len(tokens)):
            for size in range(self.SHORTEST, self.LONGEST + 1):
                if end >= size:
                    self._last[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
