"""The next-token law of a calibration pair: a table small enough to be known exactly.

A calibration pair is not a language model. Its states are single tokens; each content category
owns a ring of them. From a state the target moves by one of a few fixed offsets, so every state
of a ring is equally likely in the long run, and the most likely move walks the whole ring before
it repeats. The draft knows the same moves and ranks the first two the other way round on a
chosen share of the states. Every logit is a whole multiple of `LOGIT_STEP`, which F16 and Q8_0
both store without rounding: the law here is the law in the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from farm.domain.decoding import AcceptRule
from farm.errors import UserError
from farm.gguf.calibration_acceptance import (
    ExpectedAcceptance,
    RoundCounts,
    expect,
    greedy_counts,
)
from farm.gguf.calibration_tables import (
    FIRST_STATE_TOKEN,
    LOGIT_STEP,
    MAX_STATES_PER_CATEGORY,
    TARGET_STEPS,
    TEXT_STATE,
    draft_logit_table,
    softmax,
    successor_table,
)

METADATA_PREFIX = "specfarm.calibration"
METADATA_LAW = f"{METADATA_PREFIX}.law"
"""The metadata field that holds a file's law, and by which a calibration file is known."""

HOTTEST_EXACT = 2.0
"""Up to this temperature next to nothing but a state's own candidates follows it. Hotter, the rest
of the vocabulary, which the table counts as 0, comes up as well."""


@dataclass(frozen=True)
class Law:
    """The law of both models of a calibration pair; equal fields give an equal law anywhere.

    `agreement` belongs to `categories` in order. `vocab_size` is the target's, and the draft's
    may be smaller; probabilities are over the target's. Candidates outside a state's own are
    56 logits or more below the first and count as 0 (together below 1e-7 up to temperature
    `HOTTEST_EXACT`).
    """

    seed: int
    states_per_category: int
    categories: tuple[str, ...]
    agreement: tuple[float, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        """Raises: UserError where no such law exists."""
        if not len(TARGET_STEPS) < self.states_per_category <= MAX_STATES_PER_CATEGORY:
            raise UserError(
                f"A calibration law needs {len(TARGET_STEPS) + 1} to {MAX_STATES_PER_CATEGORY} "
                f"states per category, not {self.states_per_category}."
            )
        if len(self.agreement) != len(self.categories) or not self.categories:
            raise UserError("A calibration law needs one agreement share per category.")
        if not all(0.0 <= share <= 1.0 for share in self.agreement):
            raise UserError("Agreement shares of a calibration law lie between 0 and 1.")
        if self.vocab_size < FIRST_STATE_TOKEN + self.n_states - 1:
            raise UserError(
                f"A calibration law with {self.n_states} states needs a vocabulary of at least "
                f"{FIRST_STATE_TOKEN + self.n_states - 1} tokens, not {self.vocab_size}."
            )

    @property
    def n_states(self) -> int:
        """Return the number of states, the text state included."""
        return 1 + len(self.categories) * self.states_per_category

    def category_index(self, category: str) -> int:
        """Return a category's position. Raises: UserError for one the pair does not have."""
        try:
            return self.categories.index(str(category))
        except ValueError:
            raise UserError(
                f"The calibration pair has no category '{category}'; "
                f"it has {', '.join(self.categories)}."
            ) from None

    def states(self, category: str) -> range:
        """Return a category's states."""
        first = 1 + self.category_index(category) * self.states_per_category
        return range(first, first + self.states_per_category)

    def token(self, state: int) -> int:
        """Return the token id that stands for a state; the text state has no single one."""
        if not TEXT_STATE < state < self.n_states:
            raise UserError(f"The calibration law has no token for state {state}.")
        return FIRST_STATE_TOKEN + state - 1

    def state(self, token: int) -> int:
        """Return the state a token puts both models in."""
        state = token - FIRST_STATE_TOKEN + 1
        return state if TEXT_STATE < state < self.n_states else TEXT_STATE

    def marker(self, state: int) -> str:
        """Return the text of a state's token, such as `<chat:017>`."""
        self.token(state)
        category, position = divmod(state - 1, self.states_per_category)
        return f"<{self.categories[category]}:{position:03d}>"

    def last_state(self, text: str) -> int:
        """Return the state that the end of a text puts both models in."""
        marker = re.search(r"<([^<:>]+):(\d+)>$", text)
        if not marker or marker[1] not in self.categories:
            return TEXT_STATE
        place = int(marker[2])
        return self.states(marker[1])[place] if place < self.states_per_category else TEXT_STATE

    @cached_property
    def successors(self) -> NDArray[np.int64]:
        """Return each state's candidate next states, the target's favourite first: (states, 8)."""
        return successor_table(self.seed, self.categories, self.states_per_category)

    @cached_property
    def draft_logits(self) -> NDArray[np.float64]:
        """Return the draft's logits for `successors`, in their order: (states, 8)."""
        return draft_logit_table(
            self.seed, self.categories, self.agreement, self.states_per_category
        )

    @cached_property
    def target_logits(self) -> NDArray[np.float64]:
        """Return the target's logits for `successors`, in their order: (states, 8)."""
        return np.tile(np.array(TARGET_STEPS) * LOGIT_STEP, (self.n_states, 1))

    def target_probabilities(self, state: int, temperature: float) -> NDArray[np.float64]:
        """Return the target's law after a state over its vocabulary; one-hot at temperature 0."""
        return self._spread(state, self.target_logits[state], temperature)

    def draft_probabilities(self, state: int, temperature: float) -> NDArray[np.float64]:
        """Return the draft's law after a state over the target's vocabulary."""
        return self._spread(state, self.draft_logits[state], temperature)

    def target_by_rank(self, temperature: float) -> NDArray[np.float64]:
        """Return the target's probabilities of `successors`, in their order: (states, 8)."""
        return softmax(self.target_logits, temperature)

    def _spread(
        self, state: int, logits: NDArray[np.float64], temperature: float
    ) -> NDArray[np.float64]:
        result = np.zeros(self.vocab_size)
        tokens = self.successors[state] + FIRST_STATE_TOKEN - 1
        result[tokens] = softmax(logits, temperature)
        return result

    def greedy_walk(self, start_state: int, n_tokens: int) -> tuple[int, ...]:
        """Return the tokens the target emits at temperature 0 after the start state's token."""
        favourite = self.successors[:, 0]
        tokens, state = [], start_state
        for _ in range(n_tokens):
            state = int(favourite[state])
            tokens.append(self.token(state))
        return tuple(tokens)

    @cached_property
    def agrees(self) -> NDArray[np.bool_]:
        """Return for each state whether both models have the same argmax there: (states,)."""
        same: NDArray[np.bool_] = self.draft_logits.argmax(axis=1) == 0
        return same

    def greedy_rounds(
        self, start_state: int, n_tokens: int, n_max: int, *, cap_last: bool = True
    ) -> RoundCounts:
        """Return what a run at temperature 0 must count, exactly.

        The first of `n_tokens` comes out of the prompt's own pass; rounds follow until all are
        there. With `cap_last` a round drafts no more than can still be used (remaining - 1), as
        llama-server does, and a pass that could draft nothing is no round.
        """
        favourite = self.successors[:, 0]
        state, run = start_state, []
        for _ in range(n_tokens + n_max):
            state = int(favourite[state])
            run.append(bool(self.agrees[state]))
        return greedy_counts(run, n_tokens, n_max, cap_last=cap_last)

    def expected_acceptance(
        self,
        category: str,
        n_max: int,
        temperature: float,
        accept: AcceptRule = AcceptRule.EXACT,
    ) -> ExpectedAcceptance:
        """Return what a long run in a category accepts, exactly.

        At temperature 0 both rules are one; the start state counts as drawn uniformly.
        """
        target, draft = self.ring(category, temperature)
        return expect(target, draft, n_max, accept)

    def ring(
        self, category: str, temperature: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return target's and draft's transition matrices on a category's ring: (n, n) each."""
        states = np.array(self.states(category))
        columns = self.successors[states] - states[0]
        rows = np.arange(len(states))[:, None]
        matrices = []
        for logits in (self.target_logits, self.draft_logits):
            matrix = np.zeros((len(states), len(states)))
            matrix[rows, columns] = softmax(logits[states], temperature)
            matrices.append(matrix)
        return matrices[0], matrices[1]

    def to_json(self) -> str:
        """Return the law as `from_json` reads it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Law:
        """Rebuild a law. Raises: UserError where the text is no law of this version."""
        try:
            fields = json.loads(text)
            return cls(
                seed=int(fields["seed"]),
                states_per_category=int(fields["states_per_category"]),
                categories=tuple(fields["categories"]),
                agreement=tuple(float(share) for share in fields["agreement"]),
                vocab_size=int(fields["vocab_size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "The calibration law in this file cannot be read; make the pair again."
            ) from error
