"""Tiny targets with multi-token prediction, inside and beside them; see `trained_heads`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from trained_heads_parts import (
    HEAD_DIM,
    N_EMBD,
    N_FF,
    ROOT,
    Tables,
    Tensors,
    TrainedHeads,
    chained,
    eye,
    ones,
    tables,
    write,
    zeros,
)

from farm.domain.decoding import SpeculationKind
from farm.gguf.calibration import Law

DELTA_HEADS, DELTA_DIM, CONVOLVED_TOKENS = 2, 32, 4


def mtp(folder: Path, pair_target: Path, law: Law, *, own_file: bool = False) -> TrainedHeads:
    """Write a GLM-4.5 whose extra layer knows the draft's table, with own_file in a second file."""
    table, layer = tables(law), "blk.1"
    shared = _ends(table)
    trunk = {**_attention("blk.0"), **_ffn("blk.0")}
    head = {
        **_attention(layer),
        **_nextn(layer, table),
        **_ffn(layer, "_shexp"),
        **{name: matrix[None] for name, matrix in _ffn(layer, "_exps").items()},
        f"{layer}.ffn_gate_inp.weight": zeros(1, N_EMBD),
        f"{layer}.exp_probs_b.bias": zeros(1),
    }
    fields = {
        "expert_count": 1,
        "expert_used_count": 1,
        "expert_shared_count": 1,
        "expert_feed_forward_length": N_FF,
        "leading_dense_block_count": 1,
        "rope.dimension_count": HEAD_DIM,
    }
    whole = {**fields, "block_count": 2, "nextn_predict_layers": 1}
    if own_file:
        target, draft = folder / "mtp-trunk.gguf", folder / "mtp-draft.gguf"
        write(target, "glm4moe", pair_target, {**fields, "block_count": 1}, {**shared, **trunk})
        write(draft, "glm4moe", pair_target, whole, {**shared, **head})
    else:
        target, draft = folder / "mtp-whole.gguf", None
        write(target, "glm4moe", pair_target, whole, {**shared, **trunk, **head})
    return TrainedHeads(SpeculationKind.DRAFT_MTP, target, draft, law, chained(law))


def mtp_hybrid(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write a Qwen3.5 whose extra layer knows the draft's table.

    Its first layer is recurrent, with random weights, and so is what it remembers of the text: a
    target of this kind can't take a rejected draft back without help.
    """
    table = tables(law)
    tensors = {
        **_ends(table),
        **_recurrent("blk.0"),
        **_gated_attention("blk.1"),
        **_gated_attention("blk.2"),
        **_nextn("blk.2", table),
    }
    fields = {
        "block_count": 3,
        "nextn_predict_layers": 1,
        "full_attention_interval": 2,
        "rope.dimension_count": HEAD_DIM,
        "rope.dimension_sections": [HEAD_DIM // 2, 0, 0, 0],
        "ssm.conv_kernel": CONVOLVED_TOKENS,
        "ssm.inner_size": DELTA_HEADS * DELTA_DIM,
        "ssm.state_size": DELTA_DIM,
        "ssm.time_step_rank": DELTA_HEADS,
        "ssm.group_count": DELTA_HEADS,
    }
    target = folder / "mtp-hybrid.gguf"
    write(target, "qwen35", pair_target, fields, tensors)
    return TrainedHeads(SpeculationKind.DRAFT_MTP, target, None, law, chained(law))


def _ends(table: Tables) -> Tensors:
    return {
        "token_embd.weight": table.states,
        "output_norm.weight": ones(N_EMBD),
        "output.weight": table.target,
    }


def _nextn(layer: str, table: Tables) -> Tensors:
    """Return a head that reads a token and the hidden state before it, and heeds the token."""
    return {
        f"{layer}.nextn.eh_proj.weight": np.hstack((eye() / ROOT, zeros(N_EMBD, N_EMBD))),
        f"{layer}.nextn.enorm.weight": ones(N_EMBD),
        f"{layer}.nextn.hnorm.weight": ones(N_EMBD),
        f"{layer}.nextn.shared_head_norm.weight": ones(N_EMBD),
        f"{layer}.nextn.shared_head_head.weight": table.draft,
    }


def _attention(layer: str) -> Tensors:
    """Return attention that adds nothing, and a layer's norms."""
    return {
        f"{layer}.attn_norm.weight": ones(N_EMBD),
        f"{layer}.attn_q.weight": zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_k.weight": zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_v.weight": zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_output.weight": zeros(N_EMBD, N_EMBD),
        f"{layer}.post_attention_norm.weight": ones(N_EMBD),
    }


def _gated_attention(layer: str) -> Tensors:
    return {
        **_attention(layer),
        **_ffn(layer),
        f"{layer}.attn_q.weight": zeros(2 * N_EMBD, N_EMBD),
        f"{layer}.attn_q_norm.weight": ones(HEAD_DIM),
        f"{layer}.attn_k_norm.weight": ones(HEAD_DIM),
    }


def _recurrent(layer: str) -> Tensors:
    random = np.random.default_rng(1)
    width = DELTA_HEADS * DELTA_DIM
    shapes = {
        "attn_qkv.weight": (3 * width, N_EMBD),
        "attn_gate.weight": (width, N_EMBD),
        "ssm_conv1d.weight": (3 * width, CONVOLVED_TOKENS),
        "ssm_alpha.weight": (DELTA_HEADS, N_EMBD),
        "ssm_beta.weight": (DELTA_HEADS, N_EMBD),
    }
    matrices = {
        f"{layer}.{name}": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return {
        **matrices,
        **_ffn(layer),
        f"{layer}.attn_norm.weight": ones(N_EMBD),
        f"{layer}.post_attention_norm.weight": ones(N_EMBD),
        f"{layer}.ssm_dt.bias": zeros(DELTA_HEADS),
        f"{layer}.ssm_a": -ones(DELTA_HEADS),
        f"{layer}.ssm_norm.weight": ones(DELTA_DIM),
        f"{layer}.ssm_out.weight": zeros(N_EMBD, width),
    }


def _ffn(layer: str, suffix: str = "") -> Tensors:
    """Return a feed-forward part that adds nothing."""
    return {
        f"{layer}.ffn_gate{suffix}.weight": zeros(N_FF, N_EMBD),
        f"{layer}.ffn_up{suffix}.weight": zeros(N_FF, N_EMBD),
        f"{layer}.ffn_down{suffix}.weight": zeros(N_EMBD, N_FF),
    }
