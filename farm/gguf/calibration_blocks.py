"""The bytes of a calibration model's tensors, in slices that keep memory small.

Unused matrices are random down to their last block, because zeros run faster than weights on
some GPUs. Two matrices per layer must multiply to zero, so that the residual stream passes
unchanged: in quantised types their block scales are zero and everything else stays random; F16
has no scale, so there they are zeros. Columns beyond the law's states are ballast: random in the
stream and in every matrix, and cut off by zeros of the output norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from farm.gguf.calibration_law import Law
from farm.gguf.calibration_shapes import TensorPlan
from farm.gguf.calibration_tables import FIRST_STATE_TOKEN, LOGIT_STEP
from farm.gguf.tensor_types import type_bytes

Bytes = NDArray[np.uint8]

SLICE_BYTES = 32 * 1024 * 1024

EMBEDDING_STEP = 0.25
"""Grid of the embedding table. 127 steps mark the state; F16 and Q8_0 both store it exactly."""

STATE_VALUE = 127 * EMBEDDING_STEP
BALLAST_STEPS = 4
LOW_STEPS = (-127, -112)
"""Logits of tokens that never come, drawn in this range of `LOGIT_STEP`s."""

_SCALE_OFFSETS = {
    GGMLQuantizationType.Q8_0: (0,),
    GGMLQuantizationType.Q4_0: (0,),
    GGMLQuantizationType.Q5_0: (0,),
    GGMLQuantizationType.Q4_K: (0, 2),
}
"""Where a block keeps its F16 scales (ggml-common.h): d, and dmin in Q4_K."""

_SCALES = {
    GGMLQuantizationType.Q8_0: 2.0**-13,
    GGMLQuantizationType.Q4_0: 2.0**-9,
    GGMLQuantizationType.Q5_0: 2.0**-10,
    GGMLQuantizationType.Q4_K: 2.0**-14,
}
"""Block scales that give weights of about 0.01, as trained matrices of this width have."""


def tensor_slices(
    plan: TensorPlan, law: Law, logits: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[Bytes]:
    """Yield a tensor's bytes in order, at most about `SLICE_BYTES` at a time.

    logits: (states, candidates), the model's own for `law.successors`.
    """
    if plan.role in ("random", "zero"):
        yield from _matrix(plan, rng)
    elif plan.role == "one":
        yield np.ones(plan.shape, dtype="<f4").view(np.uint8)
    elif plan.role == "output_norm":
        yield _output_norm(plan.shape[0], law.n_states)
    else:
        rows_at_once = max(1, SLICE_BYTES // (4 * plan.shape[1]))
        for first in range(0, plan.shape[0], rows_at_once):
            rows = range(first, min(first + rows_at_once, plan.shape[0]))
            if plan.role == "embedding":
                steps, step = _embedding_steps(rows, plan.shape[1], law, rng), EMBEDDING_STEP
            else:
                steps, step = _output_steps(rows, plan.shape[1], law, logits, rng), LOGIT_STEP
            yield _store(steps, step, plan.type)


def _matrix(plan: TensorPlan, rng: np.random.Generator) -> Iterator[Bytes]:
    block_bytes = type_bytes(plan.type, 1)
    at_once = SLICE_BYTES // block_bytes * block_bytes
    for first in range(0, plan.nbytes, at_once):
        size = min(at_once, plan.nbytes - first)
        if plan.type is GGMLQuantizationType.F16:
            if plan.role == "zero":
                yield np.zeros(size, dtype=np.uint8)
                continue
            # Random sign and mantissa, exponent one of two: magnitudes from 2^-7 to 2^-5.
            words = rng.integers(0, 1 << 16, size // 2, dtype=np.uint16)
            yield ((words & 0x87FF) | 0x2000).astype("<u2").view(np.uint8)
            continue
        blocks = rng.integers(0, 256, size, dtype=np.uint8).reshape(-1, block_bytes)
        scale = 0.0 if plan.role == "zero" else _SCALES[plan.type]
        for offset in _SCALE_OFFSETS[plan.type]:
            blocks[:, offset : offset + 2] = np.array([scale], dtype="<f2").view(np.uint8)
        yield blocks.reshape(-1)


def _output_norm(n_embd: int, n_states: int) -> Bytes:
    ballast = BALLAST_STEPS * EMBEDDING_STEP
    mean_square = (STATE_VALUE**2 + (n_embd - n_states) * ballast**2) / n_embd
    weights = np.zeros(n_embd, dtype="<f4")
    weights[:n_states] = math.sqrt(mean_square) / STATE_VALUE
    return weights.view(np.uint8)


def _embedding_steps(
    rows: range, n_embd: int, law: Law, rng: np.random.Generator
) -> NDArray[np.int8]:
    steps = np.zeros((len(rows), n_embd), dtype=np.int8)
    signs = rng.integers(0, 2, (len(rows), n_embd - law.n_states), dtype=np.int8)
    steps[:, law.n_states :] = BALLAST_STEPS * (2 * signs - 1)
    steps[np.arange(len(rows)), [law.state(token) for token in rows]] = 127
    return steps


def _output_steps(
    rows: range,
    n_embd: int,
    law: Law,
    logits: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    low, high = LOW_STEPS
    steps = rng.integers(-127, 128, (len(rows), n_embd), dtype=np.int8)
    steps[:, : law.n_states] = rng.integers(low, high + 1, (len(rows), law.n_states), dtype=np.int8)
    states = np.arange(law.n_states)[:, None] + np.zeros_like(law.successors)
    row_of = FIRST_STATE_TOKEN - 1 + law.successors - rows.start
    here = (row_of >= 0) & (row_of < len(rows))
    values = np.rint(logits / LOGIT_STEP).astype(np.int8)
    steps[row_of[here], states[here]] = values[here]
    return steps


def _store(steps: NDArray[np.int8], step: float, kind: GGMLQuantizationType) -> Bytes:
    if kind is GGMLQuantizationType.F16:
        return (steps.astype(np.float32) * step).astype("<f2").view(np.uint8).reshape(-1)
    quants = steps.reshape(-1, 32)
    blocks = np.empty((len(quants), 34), dtype=np.uint8)
    blocks[:, :2] = np.array([step], dtype="<f2").view(np.uint8)
    blocks[:, 2:] = quants.view(np.uint8)
    return blocks.reshape(-1)
