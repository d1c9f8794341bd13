"""A context that holds other text before the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice


def at_depth(
    prompt: Sequence[int], bare: Sequence[int], filler: Sequence[int], depth_tokens: int
) -> list[int]:
    """Return a prompt's tokens with exactly `depth_tokens` of the filler before its text.

    prompt: as the model wants it, with what begins every text (BOS), which stays first and alone.
    bare: the same without. filler: starts over where it is too short. Raises ValueError where
    there is nothing to fill with.
    """
    if depth_tokens and not filler:
        raise ValueError("the text that fills the context has no tokens")
    starts = range(len(prompt) - len(bare) + 1)
    start = next((at for at in starts if [*prompt[at : at + len(bare)]] == [*bare]), 0)
    return [*prompt[:start], *islice(cycle(filler), depth_tokens), *prompt[start:]]
