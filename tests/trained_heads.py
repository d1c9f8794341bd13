"""Tiny drafts of the kinds that are trained for their target, whose guesses are known.

Each has the architecture that llama.cpp wants of its kind, and a calibration pair's draft table
where a trained one has weights: a state is a column, and what no table needs is zero, so that a
layer adds nothing. What they must hold is in llama.cpp's src/models/ and common/speculative.cpp.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from trained_heads_mtp import mtp, mtp_hybrid
from trained_heads_parts import (
    HEAD_DIM,
    HEADS,
    N_EMBD,
    N_FF,
    ROOT,
    Guess,
    Tensors,
    TrainedHeads,
    chained,
    eye,
    guess,
    ones,
    tables,
    write,
    zeros,
)

from farm.domain.decoding import SpeculationKind
from farm.gguf.calibration import Law
from farm.gguf.calibration_blocks import STATE_VALUE

BLOCK_TOKENS = 8
MASK_TOKEN = 1
"""The token that stands for what a block is to be filled with; its column is the last."""


def all_heads(folder: Path, pair_target: Path, law: Law) -> dict[str, TrainedHeads]:
    """Write a draft of each kind; multi-token prediction inside its target and beside it."""
    return {
        "draft-mtp": mtp(folder, pair_target, law),
        "draft-mtp-file": mtp(folder, pair_target, law, own_file=True),
        "draft-mtp-hybrid": mtp_hybrid(folder, pair_target, law),
        "draft-eagle3": eagle3(folder, pair_target, law),
        "draft-dflash": dflash(folder, pair_target, law),
        "draft-dspark": dspark(folder, pair_target, law),
    }


def eagle3(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write an EAGLE-3 draft that reads the target's own hidden state, in a smaller vocabulary.

    It takes the state from the last of three features; its feed-forward part moves to the
    target's favourite next state, the head says what the draft guesses there.
    """
    table = tables(law)
    tokens = np.arange(law.token(1), law.token(law.n_states - 1) + 1, dtype=np.int64)
    fc = zeros(N_EMBD, 3 * N_EMBD)
    states = np.arange(law.n_states)
    fc[states, 2 * N_EMBD + states] = 1
    # SiLU passes ROOT almost as it is, so that gate times up is ROOT squared in one column.
    move = zeros(N_EMBD, N_FF)
    move[law.successors[:, 0], states] += 1
    move[states, states] -= 1
    tensors: Tensors = {
        "fc.weight": fc,
        "d2t": tokens,
        "output_norm.weight": ones(N_EMBD),
        "output.weight": table.draft[tokens],
        "blk.0.attn_norm.weight": ones(N_EMBD),
        "blk.0.attn_norm_2.weight": ones(N_EMBD),
        "blk.0.attn_q.weight": zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_k.weight": zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_v.weight": zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_output.weight": zeros(N_EMBD, N_EMBD),
        "blk.0.ffn_norm.weight": ones(N_EMBD),
        "blk.0.ffn_gate.weight": eye(),
        "blk.0.ffn_up.weight": eye(),
        "blk.0.ffn_down.weight": move * np.float32(STATE_VALUE / ROOT**2),
    }
    fields = {
        "block_count": 1,
        "target_layers": [0, 0, 1],
        "target_hidden_size": N_EMBD,
        "rope.dimension_count": HEAD_DIM,
    }
    draft = folder / "eagle3-draft.gguf"
    write(draft, "eagle3", pair_target, fields, tensors)

    def guesses(state: int, width: int) -> list[Guess]:
        found = []
        for _ in range(width):
            found.append(guess(law, state))
            state = int(law.successors[state, 0])
        return found

    return TrainedHeads(SpeculationKind.DRAFT_EAGLE3, pair_target, draft, law, guesses)


def dflash(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write a DFlash draft, which fills a block of masks in one pass.

    Every mask looks at the block's first token alone, so that all of them guess what follows it.
    """
    # One dimension of each head is never rotated: there a mask asks for a state.
    asks, answers = zeros(N_EMBD, N_EMBD), zeros(N_EMBD, N_EMBD)
    unrotated = np.arange(HEADS) * HEAD_DIM + HEAD_DIM - 1
    asks[unrotated, N_EMBD - 1] = 1
    answers[np.ix_(unrotated, range(law.n_states))] = 1
    table = tables(law)
    states = table.states.copy()
    states[MASK_TOKEN] = eye()[N_EMBD - 1]
    # A mask's own column and the state it found share the norm between them.
    found = ones(N_EMBD) * np.float32(2**0.5)
    found[N_EMBD - 1] = 0
    tensors = {
        **_block_drafter(),
        "token_embd.weight": states,
        "output_norm.weight": found,
        "output.weight": table.draft,
        "blk.0.attn_q.weight": asks,
        "blk.0.attn_k.weight": answers,
        "blk.0.attn_v.weight": eye() / ROOT,
        "blk.0.attn_output.weight": eye(),
    }
    draft = folder / "dflash-draft.gguf"
    write(draft, "dflash", pair_target, _block_fields(), tensors, {"mask_token_id": MASK_TOKEN})
    return TrainedHeads(
        SpeculationKind.DRAFT_DFLASH,
        pair_target,
        draft,
        law,
        lambda state, width: [guess(law, state)] * width,
    )


def dspark(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write a DSpark draft: DFlash with a Markov head, which here is the draft's whole table, and
    a confidence head, which knows how sure the table is."""
    table = tables(law)
    sure = np.array([guess(law, state)[1] for state in range(law.n_states)])
    confidence = zeros(1, 2 * N_EMBD)
    confidence[0, N_EMBD : N_EMBD + law.n_states] = np.log(sure / (1 - sure))
    tensors = {
        **_block_drafter(),
        "token_embd.weight": table.states,
        "output_norm.weight": ones(N_EMBD),
        "output.weight": np.zeros_like(table.draft),
        "blk.0.attn_q.weight": zeros(N_EMBD, N_EMBD),
        "blk.0.attn_k.weight": zeros(N_EMBD, N_EMBD),
        "blk.0.attn_v.weight": zeros(N_EMBD, N_EMBD),
        "blk.0.attn_output.weight": zeros(N_EMBD, N_EMBD),
        "markov_w1.weight": table.states,
        "markov_w2.weight": table.draft * np.float32(ROOT),
        "conf_proj.weight": confidence,
    }
    draft = folder / "dspark-draft.gguf"
    write(draft, "dflash", pair_target, _block_fields(), tensors, {"mask_token_id": MASK_TOKEN})
    return TrainedHeads(SpeculationKind.DRAFT_DSPARK, pair_target, draft, law, chained(law))


def untrained(draft: Path, path: Path) -> Path:
    """Write a copy of a draft with random weights in every matrix, and return its path."""
    shutil.copy(draft, path)
    random = np.random.default_rng(0)
    for tensor in GGUFReader(path, "r+").tensors:
        if len(tensor.shape) > 1:
            tensor.data[:] = random.normal(size=tensor.data.shape)
    return path


def _block_drafter() -> Tensors:
    """Return what DFlash and DSpark have in common: nothing of the target's features is used."""
    return {
        "fc.weight": zeros(N_EMBD, N_EMBD),
        "enc.output_norm.weight": ones(N_EMBD),
        "blk.0.attn_norm.weight": ones(N_EMBD),
        # A sharp score: a mask looks at the block's first token and at nothing else.
        "blk.0.attn_q_norm.weight": ones(HEAD_DIM) * np.float32(ROOT),
        "blk.0.attn_k_norm.weight": ones(HEAD_DIM),
        "blk.0.ffn_norm.weight": ones(N_EMBD),
        "blk.0.ffn_gate.weight": zeros(N_FF, N_EMBD),
        "blk.0.ffn_up.weight": zeros(N_FF, N_EMBD),
        "blk.0.ffn_down.weight": zeros(N_EMBD, N_FF),
    }


def _block_fields() -> dict[str, Any]:
    return {
        "block_count": 1,
        "block_size": BLOCK_TOKENS,
        "target_layers": [1],
        "rope.dimension_count": HEAD_DIM // 2,
    }
