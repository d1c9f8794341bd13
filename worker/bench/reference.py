"""What the unmodified target says: a baseline under lossy settings is held against it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from worker.bench.decode import EndsText, baseline
from worker.bench.failure import Failure
from worker.bench.llama import Context, Logits, Model
from worker.bench.sampling import Greedy, top_two_gap

# llama.cpp pads a context to this many cells (llama_context, GGML_PAD of n_ctx).
CONTEXT_STEP_TOKENS = 256


@dataclass(frozen=True)
class Text:
    """What the unmodified target says, and the gap of its two best logits at each token."""

    output_ids: list[int]
    margins_logits: list[float]

    def margin(self, position: int) -> float | None:
        """Return the gap at a position, None where the text ended before."""
        return self.margins_logits[position] if position < len(self.margins_logits) else None


class References:
    """One text per prompt, decoded once for all jobs of a loaded pair."""

    def __init__(self, target_path: str, target: Model, settings: dict[str, Any]) -> None:
        self._target_path = target_path
        self._target = target
        self._settings = settings
        self._texts: dict[tuple[tuple[int, ...], int], Text] = {}
        self._has_room = True

    def missing(self, prompts: Sequence[list[int]], generate_tokens: int) -> list[list[int]]:
        """Return the prompts that have no text yet; none where there was no memory for it."""
        if not self._has_room:
            return []
        return [prompt for prompt in prompts if self.text(prompt, generate_tokens) is None]

    def prepare(
        self, prompts: Sequence[list[int]], generate_tokens: int, unmodified: dict[str, Any]
    ) -> None:
        """Decode prompts plainly, with the unmodified target.

        unmodified: the settings in which it differs from the loaded one.
        Its context is as long as these texts need and is gone afterwards. Where there is no memory
        for it there is no reference: the log says so, and this load's jobs are measured without.
        """
        longest = max(map(len, prompts)) + generate_tokens
        cells = -(-longest // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
        settings = self._settings | unmodified | {"context_tokens": cells}
        try:
            with ExitStack() as borrowed:
                model = self._target
                # Only what is loaded with a model needs another load of it.
                if "experts_used" in unmodified:
                    again = Model(self._target_path, settings["gpu_layers"])
                    model = borrowed.enter_context(closing(again))
                context = borrowed.enter_context(closing(model.context(settings)))
                for prompt in prompts:
                    text = _decoded(context, prompt, generate_tokens, model.ends_text)
                    self._texts[tuple(prompt), generate_tokens] = text
        except Failure as failure:
            if failure.kind != "load-failed":
                raise
            self._has_room = False
            sys.stderr.write(f"No reference of the unmodified target: {failure.message}\n")

    def text(self, prompt: Sequence[int], generate_tokens: int) -> Text | None:
        """Return a prompt's text, None where there is none."""
        return self._texts.get((tuple(prompt), generate_tokens))


def _decoded(
    context: Context, prompt: list[int], generate_tokens: int, ends_text: EndsText
) -> Text:
    rule = _Noting()
    run = baseline(context, rule, prompt, generate_tokens, ends_text)
    return Text(run.output_ids, rule.margins_logits)


class _Noting(Greedy):
    """Greedy, and notes by how much each token was the best."""

    def __init__(self) -> None:
        self.margins_logits: list[float] = []

    def pick(self, logits: Logits) -> int:
        self.margins_logits.append(top_two_gap(logits))
        return super().pick(logits)
