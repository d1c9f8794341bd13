"""Python's share of a round with a vocabulary of 152k tokens at K=16.

Python is everything outside llama.cpp's calls for passes and rollbacks: preparing batches, taking
logits, drawing and verifying, the loop. It grows with the vocabulary and not with the model, so it
is judged on the smallest pair of such a vocabulary that anyone would speculate with: the outline of
Qwen2.5-1.5B with Qwen2.5-0.5B, 4 bits. What its first tokens' passes cost Python is counted too,
and their time in llama.cpp is not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm import paths
from farm.domain.decoding import AcceptRule, Settings
from farm.gguf.calibration import calibration_prompt, law_of, make_pair
from farm.gguf.calibration_shapes import SHAPES, ModelShape, Shape
from farm.gguf.header import read_header
from tests.bench.rig import CATEGORY, CONTEXT_TOKENS, Rig
from tests.bench.timing import Figure
from worker.bench.decode import Run, speculative
from worker.bench.drafters import ModelDrafter
from worker.bench.llama import Model, lib, start_backend
from worker.bench.sampling import rule

BAR_PERCENT = 2.0
K = 16
SHAPE = Shape(
    "qwen2.5-1.5b+0.5b",
    "the outline of Qwen2.5-1.5B with Qwen2.5-0.5B",
    ModelShape(28, 1536, 8960, 12, 2, 128, 151_936),
    SHAPES["qwen2.5-7b+0.5b"].draft,
)
RULES = ((0.0, AcceptRule.EXACT), (1.0, AcceptRule.EXACT), (1.0, AcceptRule.MATCH))


def large_pair() -> tuple[Path, Path]:
    """Return the pair, about 2 GB."""
    return make_pair(SHAPE, "q4_0", paths.cache() / "calibration")


def measure(rig: Rig) -> list[Figure]:
    """Return Python's share at temperature 0 and, above it, for both accept rules."""
    with (rig.folder / "vocabulary.log").open("w") as log, contextlib.redirect_stderr(log):
        start_backend()
        pair = large_pair()
        prompt = calibration_prompt(law_of(read_header(pair[0])), CATEGORY, "")
        wanted = Settings(context_tokens=CONTEXT_TOKENS, threads=rig.threads)
        settings = asdict(wanted.spelled_out())
        models = [Model(str(path), None) for path in pair]
        target, draft = (model.context(settings) for model in models)
        tokens = models[0].tokenize(prompt)
        figures = []
        for temperature, accept in RULES:
            for length in (4, 48 if rig.is_quick else 160):  # the first one warms up
                rules = [rule(temperature, accept, np.random.default_rng([0, n])) for n in (0, 1)]
                drafter = ModelDrafter(draft, rules[1], models[0].vocab_tokens, 0.0, 0)
                with _time_in_llama() as inside:
                    run = speculative(
                        target, drafter, rules[0], tokens, length, K, models[0].ends_text
                    )
            name = f"temperature {temperature:g}" + (f", {accept}" if temperature else "")
            figures.append(_figure(name, run, inside[0]))
    return figures


@contextlib.contextmanager
def _time_in_llama() -> Iterator[list[float]]:
    """Add up the seconds spent in passes and rollbacks, in the one element of the list."""
    inside = [0.0]

    def timed(call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                inside[0] += time.perf_counter() - start

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("llama_decode", "llama_memory_seq_rm"):
            patch.setattr(lib, name, timed(getattr(lib, name)))
        yield inside


def _figure(name: str, run: Run, inside_s: float) -> Figure:
    python_ms = run.prompt_ms + run.draft_prompt_ms + run.decode_ms - inside_s * 1e3
    detail = (
        f"{python_ms / run.rounds:.2f} of {run.decode_ms / run.rounds:.0f} ms a round, "
        f"{run.rounds} rounds, {run.drafted} drafted, {run.accepted} accepted"
    )
    share = python_ms / run.decode_ms * 100
    return Figure(f"Python, 152k tokens, K={K}, {name}", share, "%", detail, at_most=BAR_PERCENT)
