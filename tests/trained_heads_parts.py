"""What the tests' drafts with trained heads are made of: a law's tables as tensors, and a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from farm.domain.decoding import SpeculationKind
from farm.gguf.calibration import Law, RoundCounts
from farm.gguf.calibration_tables import softmax

Floats = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]
Guess = tuple[int, float]
"""The state that is drafted, and how sure of it the draft is."""

N_EMBD = 256
ROOT = 16.0
"""What RMS norm makes of a column that is alone in its row: sqrt(N_EMBD)."""
HEADS, HEAD_DIM, N_FF = 4, 64, 256
NEVER = -60.0

_SHAPE = {
    "context_length": 32_768,
    "embedding_length": N_EMBD,
    "feed_forward_length": N_FF,
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-6,
}


@dataclass(frozen=True)
class TrainedHeads:
    """A target, the file of its draft (None where it has its own heads) and what it guesses."""

    kind: SpeculationKind
    target: Path
    draft: Path | None
    law: Law
    guesses: Callable[[int, int], list[Guess]]

    def rounds(self, start: int, n_tokens: int, n_max: int, p_min: float = 0.0) -> RoundCounts:
        """Return what a run at temperature 0 must count; see `Law.greedy_rounds`.

        A round drafts up to the first guess that is less sure than p_min.
        """
        law, done, passes = self.law, 1, 0
        drafted, accepted = [0] * n_max, [0] * n_max
        path = [law.state(token) for token in law.greedy_walk(start, n_tokens)]
        while done < n_tokens:
            passes += 1
            width = min(n_max, n_tokens - done - 1)
            run, agrees = 0, True
            for position, (state, sure) in enumerate(self.guesses(path[done - 1], width)):
                if sure < p_min:
                    break
                drafted[position] += 1
                agrees = agrees and state == path[done + position]
                run += agrees
            for position in range(run):
                accepted[position] += 1
            done += run + 1
        counts = (sum(drafted), sum(accepted), tuple(drafted), tuple(accepted))
        return RoundCounts(drafted[0], passes, *counts)


@dataclass(frozen=True)
class Tables:
    """Rows are tokens, columns states: which state a token is, and the logits that follow one."""

    states: Floats
    target: Floats
    draft: Floats


def tables(law: Law) -> Tables:
    def head(logits: NDArray[np.float64]) -> Floats:
        rows = np.full((law.vocab_size, N_EMBD), NEVER, dtype=np.float32)
        tokens = law.successors + law.token(1) - 1
        rows[tokens, np.arange(law.n_states)[:, None]] = logits
        return rows / np.float32(ROOT)

    states = eye()[[law.state(token) for token in range(law.vocab_size)]]
    return Tables(states, head(law.target_logits), head(law.draft_logits))


def guess(law: Law, state: int) -> Guess:
    logits = law.draft_logits[state]
    return int(law.successors[state, logits.argmax()]), float(softmax(logits, 1.0).max())


def chained(law: Law) -> Callable[[int, int], list[Guess]]:
    """Return the guesses of a draft that goes on from its own last one."""

    def guesses(state: int, width: int) -> list[Guess]:
        found = []
        for _ in range(width):
            state, sure = guess(law, state)
            found.append((state, sure))
        return found

    return guesses


def zeros(*extents: int) -> Floats:
    return np.zeros(extents, dtype=np.float32)


def ones(count: int) -> Floats:
    return np.ones(count, dtype=np.float32)


def eye() -> Floats:
    return np.eye(N_EMBD, dtype=np.float32)


def write(
    path: Path,
    architecture: str,
    pair_target: Path,
    fields: Mapping[str, Any],
    tensors: Tensors,
    tokenizer: Mapping[str, int] | None = None,
) -> None:
    """Write a file with the vocabulary and the law of a calibration target."""
    writer = GGUFWriter(path, architecture)
    for key, value in {**_SHAPE, **fields}.items():
        key = f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for field in GGUFReader(pair_target).fields.values():
        if field.name.startswith(("tokenizer.", "specfarm.")):
            kind, *sub = field.types
            sub_kind = sub[0] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_kind)
    for key, token in (tokenizer or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{key}", token)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
