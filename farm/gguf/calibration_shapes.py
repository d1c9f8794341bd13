"""Shapes of calibration pairs: small ones to test with, and the outlines of real pairs.

Layer counts and widths of the real ones are those of the published model configurations. A
calibration pair has the shape of such a pair and nothing else of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from farm.domain.prompt import Category
from farm.errors import UserError
from farm.gguf.calibration_tables import FIRST_STATE_TOKEN, MAX_STATES_PER_CATEGORY, TARGET_STEPS
from farm.gguf.tensor_types import type_bytes

Q = GGMLQuantizationType

QUANTISATIONS: dict[str, GGMLQuantizationType] = {
    "f16": Q.F16,
    "q8_0": Q.Q8_0,
    "q4_0": Q.Q4_0,
    "q4_k": Q.Q4_K,
}


@dataclass(frozen=True)
class ModelShape:
    """One llama-architecture model's shape. `vocab_size` None takes what the law needs."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    vocab_size: int | None = None


@dataclass(frozen=True)
class Shape:
    """A pair's shape under a name."""

    name: str
    about: str
    target: ModelShape
    draft: ModelShape

    @property
    def states_per_category(self) -> int:
        """Return how many states fit: one embedding column each, the narrower model decides."""
        columns = min(self.target.n_embd, self.draft.n_embd)
        fit = min((columns - 1) // len(Category), MAX_STATES_PER_CATEGORY)
        if fit <= len(TARGET_STEPS):
            raise UserError(f"Shape '{self.name}' is too narrow for a calibration pair.")
        return fit

    @property
    def minimal_vocab(self) -> int:
        """Return the smallest vocabulary that holds the law's tokens."""
        return -(-(FIRST_STATE_TOKEN + len(Category) * self.states_per_category) // 64) * 64


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to write. `shape` is (rows, columns) or (columns,); `role` says what goes in."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    role: str

    @property
    def nbytes(self) -> int:
        """Return the tensor's size in the file, without padding."""
        return type_bytes(self.type, math.prod(self.shape))


def tensors(shape: ModelShape, vocab_size: int, quantisation: str) -> Iterator[TensorPlan]:
    """Yield a model's tensors in file order."""
    table = Q.F16 if quantisation == "f16" else Q.Q8_0
    heads, kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield TensorPlan("token_embd.weight", (vocab_size, shape.n_embd), table, "embedding")
    for layer in range(shape.n_layer):
        matrices = (
            ("attn_q", (heads, shape.n_embd), "random"),
            ("attn_k", (kv, shape.n_embd), "random"),
            ("attn_v", (kv, shape.n_embd), "random"),
            ("attn_output", (shape.n_embd, heads), "zero"),
            ("ffn_gate", (shape.n_ff, shape.n_embd), "random"),
            ("ffn_up", (shape.n_ff, shape.n_embd), "random"),
            ("ffn_down", (shape.n_embd, shape.n_ff), "zero"),
        )
        for norm in ("attn_norm", "ffn_norm"):
            yield TensorPlan(f"blk.{layer}.{norm}.weight", (shape.n_embd,), Q.F32, "one")
        for name, extents, role in matrices:
            kind = _fitting(QUANTISATIONS[quantisation], extents[1])
            yield TensorPlan(f"blk.{layer}.{name}.weight", extents, kind, role)
    yield TensorPlan("output_norm.weight", (shape.n_embd,), Q.F32, "output_norm")
    yield TensorPlan("output.weight", (vocab_size, shape.n_embd), table, "output")


def _fitting(wanted: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    # llama-quantize's own fallback where a row does not fill blocks of 256 (src/llama-quant.cpp).
    return Q.Q5_0 if wanted is Q.Q4_K and columns % 256 else wanted


def shape_named(name: str) -> Shape:
    """Return a shape. Raises: UserError with the known names."""
    try:
        return SHAPES[name]
    except KeyError:
        raise UserError(
            f"There is no calibration shape '{name}'; choose one of {', '.join(SHAPES)}."
        ) from None


_QWEN25_05B = ModelShape(24, 896, 4864, 14, 2, 64, 151_936)

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "tiny",
            "a few MB, for tests",
            ModelShape(2, 256, 512, 4, 2, 64),
            ModelShape(1, 256, 256, 2, 2, 64),
        ),
        Shape(
            "demo",
            "small enough for two CPU cores, large enough that drafting pays",
            ModelShape(4, 1024, 3072, 16, 4, 64),
            ModelShape(1, 1024, 256, 2, 2, 64),
        ),
        Shape(
            "qwen2.5-7b+0.5b",
            "the outline of Qwen2.5-7B with Qwen2.5-0.5B",
            ModelShape(28, 3584, 18_944, 28, 4, 128, 152_064),
            _QWEN25_05B,
        ),
        Shape(
            "qwen2.5-32b+0.5b",
            "the outline of Qwen2.5(-Coder)-32B with Qwen2.5(-Coder)-0.5B",
            ModelShape(64, 5120, 27_648, 40, 8, 128, 152_064),
            _QWEN25_05B,
        ),
        Shape(
            "llama-3.3-70b+3.2-1b",
            "the outline of Llama-3.3-70B with Llama-3.2-1B",
            ModelShape(80, 8192, 28_672, 64, 8, 128, 128_256),
            ModelShape(16, 2048, 8192, 32, 8, 64, 128_256),
        ),
    )
}
