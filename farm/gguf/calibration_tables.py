"""How the tables of a calibration law are drawn from its seed.

Every draw is a hash, not a generator's: a law must come out equal under every numpy, for ever.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farm.domain.prompt import Category
from farm.errors import UserError

LOGIT_STEP = 0.5
FIRST_STATE_TOKEN = 259
"""<unk>, <s>, </s> and 256 byte tokens come first, as in every SentencePiece vocabulary."""

MAX_STATES_PER_CATEGORY = 512
TEXT_STATE = 0
"""The state of every token that is no state token; it goes on like the first category's first."""

TARGET_STEPS = (0, -3, -5, -6, -7, -8, -9, -10)
"""The target's logits for its candidates in order, in `LOGIT_STEP`s: top-1 probability 0.70."""

DRAFT_TAIL_STEPS = (-4, -5, -6, -6, -7, -8)
"""The draft's logits for the candidates after the first two: flatter than the target's."""

DRAFT_GAPS_AGREEING = (1, 2, 3, 4, 6)
DRAFT_GAPS_DISAGREEING = (1, 2, 3)
"""The draft's lead of first over second. The sets overlap, as confidence and truth do in life."""

RESEMBLING_AGREEMENT: dict[Category, float] = {
    Category.CODE_COMPLETION: 0.90,
    Category.CODE_GENERATION: 0.80,
    Category.STRUCTURED_OUTPUT: 0.88,
    Category.TOOL_CALLS: 0.86,
    Category.SUMMARISATION: 0.62,
    Category.CHAT: 0.50,
    Category.CREATIVE_PROSE: 0.30,
    Category.MATH_REASONING: 0.70,
}
"""Share of states where both argmaxes agree: chosen to resemble rates people published for real
pairs, so that a run of the farm looks like one. They measure nothing."""


def successor_table(seed: int, categories: Sequence[str], n: int) -> NDArray[np.int64]:
    """Return each state's candidate next states, the target's favourite first: (states, 8).

    Candidates are fixed offsets on a category's ring of n states; the favourite's is coprime to
    n, so that the greedy path visits the whole ring before it repeats.
    """
    table = np.zeros((1 + len(categories) * n, len(TARGET_STEPS)), dtype=np.int64)
    for index, category in enumerate(categories):
        first = 1 + index * n
        offsets = np.array(_offsets(seed, category, n))
        table[first : first + n] = first + (np.arange(n)[:, None] + offsets) % n
    table[TEXT_STATE] = table[1]
    return table


def draft_logit_table(
    seed: int, categories: Sequence[str], agreement: Sequence[float], n: int
) -> NDArray[np.float64]:
    """Return the draft's logits for `successor_table`, in its order: (states, 8).

    On a share `agreement` of each category's states (rounded to whole states) the first candidate
    leads, on the others the second.
    """
    table = np.zeros((1 + len(categories) * n, len(TARGET_STEPS)))
    table[:, 2:] = DRAFT_TAIL_STEPS
    for index, (category, share) in enumerate(zip(categories, agreement, strict=True)):
        ranked = sorted(range(n), key=lambda i: _draw(seed, f"agree:{category}:{i}"))
        for rank, position in enumerate(ranked):
            agrees = rank < round(share * n)
            gaps = DRAFT_GAPS_AGREEING if agrees else DRAFT_GAPS_DISAGREEING
            gap = gaps[_draw(seed, f"gap:{category}:{position}") % len(gaps)]
            table[1 + index * n + position, 1 if agrees else 0] = -gap
    table[TEXT_STATE] = table[1]
    return table * LOGIT_STEP


def softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities along the last axis; at temperature 0 all on the first maximum."""
    if temperature < 0:
        raise UserError(f"A temperature is 0 or more, not {temperature}.")
    if temperature == 0:
        best = np.arange(logits.shape[-1]) == logits.argmax(axis=-1)[..., None]
        return np.asarray(best, dtype=np.float64)
    scaled = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True), dtype=np.float64)


def _draw(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8], "big")


def _offsets(seed: int, category: str, n: int) -> list[int]:
    ranked = sorted(range(1, n), key=lambda offset: _draw(seed, f"offset:{category}:{offset}"))
    first = next(offset for offset in ranked if math.gcd(offset, n) == 1)
    others = [offset for offset in ranked if offset != first]
    return [first, *others[: len(TARGET_STEPS) - 1]]
