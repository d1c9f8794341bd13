"""Tiny drafts of the kinds that are trained for their target, whose guesses are known.

Each has the architecture that llama.cpp wants of its kind, and a calibration pair's draft table
where a trained one has weights: a state is a column, and what no table needs is zero, so that a
layer adds nothing. What they must hold is in llama.cpp's src/models/ and common/speculative.cpp.
"""

from __future__ import annotations

import shutil
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
BLOCK_TOKENS = 8
NEVER = -60.0
MASK_TOKEN = 1
"""The token that stands for what a block is to be filled with; its column is the last."""

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


def all_heads(folder: Path, pair_target: Path, law: Law) -> dict[str, TrainedHeads]:
    """Write a draft of each kind; multi-token prediction inside its target and beside it."""
    return {
        "draft-mtp": mtp(folder, pair_target, law),
        "draft-mtp-file": mtp(folder, pair_target, law, own_file=True),
        "draft-eagle3": eagle3(folder, pair_target, law),
        "draft-dflash": dflash(folder, pair_target, law),
        "draft-dspark": dspark(folder, pair_target, law),
    }


def mtp(folder: Path, pair_target: Path, law: Law, *, own_file: bool = False) -> TrainedHeads:
    """Write a GLM-4.5 whose extra layer knows the draft's table, with own_file in a second file.

    The extra layer reads the token and the hidden state before it; this one heeds the token.
    """
    table, layer = _tables(law), "blk.1"
    trunk = {
        **_block("blk.0"),
        **{f"blk.0.{name}": _zeros(N_FF, N_EMBD) for name in ("ffn_gate.weight", "ffn_up.weight")},
        "blk.0.ffn_down.weight": _zeros(N_EMBD, N_FF),
    }
    head: Tensors = {
        **_block(layer),
        f"{layer}.ffn_gate_inp.weight": _zeros(1, N_EMBD),
        f"{layer}.exp_probs_b.bias": _zeros(1),
        f"{layer}.nextn.eh_proj.weight": np.hstack((_eye() / ROOT, _zeros(N_EMBD, N_EMBD))),
        f"{layer}.nextn.enorm.weight": _ones(N_EMBD),
        f"{layer}.nextn.hnorm.weight": _ones(N_EMBD),
        f"{layer}.nextn.shared_head_norm.weight": _ones(N_EMBD),
        f"{layer}.nextn.shared_head_head.weight": table.draft,
    }
    for part, extents in (
        ("gate", (N_FF, N_EMBD)),
        ("up", (N_FF, N_EMBD)),
        ("down", (N_EMBD, N_FF)),
    ):
        head[f"{layer}.ffn_{part}_exps.weight"] = _zeros(1, *extents)
        head[f"{layer}.ffn_{part}_shexp.weight"] = _zeros(*extents)
    shared = {
        "token_embd.weight": table.states,
        "output_norm.weight": _ones(N_EMBD),
        "output.weight": table.target,
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
        _write(target, "glm4moe", pair_target, {**fields, "block_count": 1}, {**shared, **trunk})
        _write(draft, "glm4moe", pair_target, whole, {**shared, **head})
    else:
        target, draft = folder / "mtp-whole.gguf", None
        _write(target, "glm4moe", pair_target, whole, {**shared, **trunk, **head})
    return TrainedHeads(SpeculationKind.DRAFT_MTP, target, draft, law, _chained(law))


def eagle3(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write an EAGLE-3 draft that reads the target's own hidden state, in a smaller vocabulary.

    It takes the state from the last of three features; its feed-forward part moves to the
    target's favourite next state, the head says what the draft guesses there.
    """
    table = _tables(law)
    tokens = np.arange(law.token(1), law.token(law.n_states - 1) + 1, dtype=np.int64)
    fc = _zeros(N_EMBD, 3 * N_EMBD)
    states = np.arange(law.n_states)
    fc[states, 2 * N_EMBD + states] = 1
    # SiLU passes ROOT almost as it is, so that gate times up is ROOT squared in one column.
    move = _zeros(N_EMBD, N_FF)
    move[law.successors[:, 0], states] += 1
    move[states, states] -= 1
    largest = float(max(tensor_row(pair_target, "token_embd.weight", law.token(1))))
    tensors: Tensors = {
        "fc.weight": fc,
        "d2t": tokens,
        "output_norm.weight": _ones(N_EMBD),
        "output.weight": table.draft[tokens],
        "blk.0.attn_norm.weight": _ones(N_EMBD),
        "blk.0.attn_norm_2.weight": _ones(N_EMBD),
        "blk.0.attn_q.weight": _zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_k.weight": _zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_v.weight": _zeros(N_EMBD, 2 * N_EMBD),
        "blk.0.attn_output.weight": _zeros(N_EMBD, N_EMBD),
        "blk.0.ffn_norm.weight": _ones(N_EMBD),
        "blk.0.ffn_gate.weight": _eye(),
        "blk.0.ffn_up.weight": _eye(),
        "blk.0.ffn_down.weight": move * np.float32(largest / ROOT**2),
    }
    fields = {
        "block_count": 1,
        "target_layers": [0, 0, 1],
        "target_hidden_size": N_EMBD,
        "rope.dimension_count": HEAD_DIM,
    }
    draft = folder / "eagle3-draft.gguf"
    _write(draft, "eagle3", pair_target, fields, tensors)

    def guesses(state: int, width: int) -> list[Guess]:
        found = []
        for _ in range(width):
            found.append(_guess(law, state))
            state = int(law.successors[state, 0])
        return found

    return TrainedHeads(SpeculationKind.DRAFT_EAGLE3, pair_target, draft, law, guesses)


def dflash(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write a DFlash draft, which fills a block of masks in one pass.

    Every mask looks at the block's first token alone, so that all of them guess what follows it.
    """
    # One dimension of each head is never rotated: there a mask asks for a state.
    asks, answers = _zeros(N_EMBD, N_EMBD), _zeros(N_EMBD, N_EMBD)
    unrotated = np.arange(HEADS) * HEAD_DIM + HEAD_DIM - 1
    asks[unrotated, N_EMBD - 1] = 1
    answers[np.ix_(unrotated, range(law.n_states))] = 1
    table = _tables(law)
    states = table.states.copy()
    states[MASK_TOKEN] = _eye()[N_EMBD - 1]
    # A mask's own column and the state it found share the norm between them.
    found = _ones(N_EMBD) * np.float32(2**0.5)
    found[N_EMBD - 1] = 0
    tensors = {
        **_block_drafter(),
        "token_embd.weight": states,
        "output_norm.weight": found,
        "output.weight": table.draft,
        "blk.0.attn_q.weight": asks,
        "blk.0.attn_k.weight": answers,
        "blk.0.attn_v.weight": _eye() / ROOT,
        "blk.0.attn_output.weight": _eye(),
    }
    draft = folder / "dflash-draft.gguf"
    _write(draft, "dflash", pair_target, _block_fields(), tensors, {"mask_token_id": MASK_TOKEN})
    return TrainedHeads(
        SpeculationKind.DRAFT_DFLASH,
        pair_target,
        draft,
        law,
        lambda state, width: [_guess(law, state)] * width,
    )


def dspark(folder: Path, pair_target: Path, law: Law) -> TrainedHeads:
    """Write a DSpark draft: DFlash with a Markov head, which here is the draft's whole table, and
    a confidence head, which knows how sure the table is."""
    table = _tables(law)
    sure = np.array([_guess(law, state)[1] for state in range(law.n_states)])
    confidence = _zeros(1, 2 * N_EMBD)
    confidence[0, N_EMBD : N_EMBD + law.n_states] = np.log(sure / (1 - sure))
    tensors = {
        **_block_drafter(),
        "token_embd.weight": table.states,
        "output_norm.weight": _ones(N_EMBD),
        "output.weight": np.zeros_like(table.draft),
        "blk.0.attn_q.weight": _zeros(N_EMBD, N_EMBD),
        "blk.0.attn_k.weight": _zeros(N_EMBD, N_EMBD),
        "blk.0.attn_v.weight": _zeros(N_EMBD, N_EMBD),
        "blk.0.attn_output.weight": _zeros(N_EMBD, N_EMBD),
        "markov_w1.weight": table.states,
        "markov_w2.weight": table.draft * np.float32(ROOT),
        "conf_proj.weight": confidence,
    }
    draft = folder / "dspark-draft.gguf"
    _write(draft, "dflash", pair_target, _block_fields(), tensors, {"mask_token_id": MASK_TOKEN})
    return TrainedHeads(SpeculationKind.DRAFT_DSPARK, pair_target, draft, law, _chained(law))


def untrained(draft: Path, path: Path) -> Path:
    """Write a copy of a draft with random weights in every matrix, and return its path."""
    shutil.copy(draft, path)
    random = np.random.default_rng(0)
    for tensor in GGUFReader(path, "r+").tensors:
        if len(tensor.shape) > 1:
            tensor.data[:] = random.normal(size=tensor.data.shape)
    return path


def tensor_row(path: Path, name: str, row: int) -> Floats:
    """Return one row of a file's tensor."""
    tensor = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == name)
    return np.asarray(tensor.data[row], dtype=np.float32)


@dataclass(frozen=True)
class _Tables:
    """Rows are tokens, columns states: which state a token is, and the logits that follow one."""

    states: Floats
    target: Floats
    draft: Floats


def _tables(law: Law) -> _Tables:
    def head(logits: NDArray[np.float64]) -> Floats:
        rows = np.full((law.vocab_size, N_EMBD), NEVER, dtype=np.float32)
        tokens = law.successors + law.token(1) - 1
        rows[tokens, np.arange(law.n_states)[:, None]] = logits
        return rows / np.float32(ROOT)

    states = _eye()[[law.state(token) for token in range(law.vocab_size)]]
    return _Tables(states, head(law.target_logits), head(law.draft_logits))


def _guess(law: Law, state: int) -> Guess:
    logits = law.draft_logits[state]
    return int(law.successors[state, logits.argmax()]), float(softmax(logits, 1.0).max())


def _chained(law: Law) -> Callable[[int, int], list[Guess]]:
    """Return the guesses of a draft that goes on from its own last one."""

    def guesses(state: int, width: int) -> list[Guess]:
        found = []
        for _ in range(width):
            state, sure = _guess(law, state)
            found.append((state, sure))
        return found

    return guesses


def _block(layer: str) -> Tensors:
    """Return a layer's attention that adds nothing, and its norms."""
    return {
        f"{layer}.attn_norm.weight": _ones(N_EMBD),
        f"{layer}.attn_q.weight": _zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_k.weight": _zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_v.weight": _zeros(N_EMBD, N_EMBD),
        f"{layer}.attn_output.weight": _zeros(N_EMBD, N_EMBD),
        f"{layer}.post_attention_norm.weight": _ones(N_EMBD),
    }


def _block_drafter() -> Tensors:
    """Return what DFlash and DSpark have in common: nothing of the target's features is used."""
    return {
        "fc.weight": _zeros(N_EMBD, N_EMBD),
        "enc.output_norm.weight": _ones(N_EMBD),
        "blk.0.attn_norm.weight": _ones(N_EMBD),
        # A sharp score: a mask looks at the block's first token and at nothing else.
        "blk.0.attn_q_norm.weight": _ones(HEAD_DIM) * np.float32(ROOT),
        "blk.0.attn_k_norm.weight": _ones(HEAD_DIM),
        "blk.0.ffn_norm.weight": _ones(N_EMBD),
        "blk.0.ffn_gate.weight": _zeros(N_FF, N_EMBD),
        "blk.0.ffn_up.weight": _zeros(N_FF, N_EMBD),
        "blk.0.ffn_down.weight": _zeros(N_EMBD, N_FF),
    }


def _block_fields() -> dict[str, Any]:
    return {
        "block_count": 1,
        "block_size": BLOCK_TOKENS,
        "target_layers": [1],
        "rope.dimension_count": HEAD_DIM // 2,
    }


def _zeros(*extents: int) -> Floats:
    return np.zeros(extents, dtype=np.float32)


def _ones(count: int) -> Floats:
    return np.ones(count, dtype=np.float32)


def _eye() -> Floats:
    return np.eye(N_EMBD, dtype=np.float32)


def _write(
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
