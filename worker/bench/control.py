"""The control of a divergence: the baseline's own text, scored in passes as wide as a verification.

No drafting, no acceptance, no roll-back: what differs from the baseline here is arithmetic.
"""

from __future__ import annotations

from worker.bench.llama import Context


def control_token(
    target: Context, prompt: list[int], output_ids: list[int], position: int, n_max: int
) -> int:
    """Return the target's best token at a position of the baseline's text.

    Every pass but the prompt's is n_max + 1 tokens wide. The last is filled with what the baseline
    said next; no token sees those after it.
    """
    target.clear()
    best = int(target.prefill(prompt).argmax())
    width = n_max + 1
    text = [*output_ids, *[output_ids[-1]] * n_max]
    for start in range(0, position, width):
        logits = target.decode(text[start : start + width])
        best = int(logits[min(position - start, width) - 1].argmax())
    return best
