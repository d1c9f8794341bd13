"""Writing one model of a calibration pair: header through gguf's writer, tensors as a stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from gguf import GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from farm.gguf.calibration_blocks import tensor_slices
from farm.gguf.calibration_law import METADATA_LAW, METADATA_PREFIX, Law
from farm.gguf.calibration_shapes import ModelShape, tensors
from farm.gguf.calibration_tables import FIRST_STATE_TOKEN

NAME = "specfarm calibration pair, not a language model"

CONTEXT_TOKENS = 32_768
RMS_EPSILON = 1e-6
_ALIGNMENT = 32
_PART = ".part"

_FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_k": LlamaFileType.MOSTLY_Q4_K_S,
}


def write_model(
    path: Path,
    role: str,
    shape: ModelShape,
    vocab_size: int,
    quantisation: str,
    law: Law,
    fields: dict[str, str],
    advance: Callable[[int], None],
) -> None:
    """Write one model to `path`, whole or not at all.

    role: "target" or "draft". fields: further `specfarm.calibration.*` metadata. advance is
    called with the bytes of tensor data just written.
    """
    _clear_abandoned(path)
    plans = list(tensors(shape, vocab_size, quantisation))
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    rng = np.random.default_rng([law.seed, 0 if role == "target" else 1])
    logits: NDArray[np.float64] = law.target_logits if role == "target" else law.draft_logits
    writer = GGUFWriter(unfinished, "llama")
    try:
        writer.add_name(f"{NAME} ({role})")
        writer.add_description(
            "Random weights around a known next-token table; its output is no text."
        )
        writer.add_file_type(_FILE_TYPES[quantisation])
        _add_shape(writer, shape, vocab_size)
        _add_vocabulary(writer, law, vocab_size)
        for key, value in {"role": role, **fields}.items():
            writer.add_string(f"{METADATA_PREFIX}.{key}", value)
        writer.add_string(METADATA_LAW, law.to_json())
        for plan in plans:
            writer.add_tensor_info(
                plan.name, plan.shape, np.dtype(np.float32), plan.nbytes, raw_dtype=plan.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with unfinished.open("ab") as file:
            for plan in plans:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                for data in tensor_slices(plan, law, logits, rng):
                    file.write(data.data)
                    advance(data.nbytes)
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        unfinished.replace(path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def _clear_abandoned(path: Path) -> None:
    # A killed process cannot clean up after itself, and what it leaves may be 20 GB.
    for part in path.parent.glob(f"{path.name}.*{_PART}"):
        owner = part.name.removesuffix(_PART).rpartition(".")[2]
        if not owner.isdigit() or not psutil.pid_exists(int(owner)):
            part.unlink(missing_ok=True)


def _add_shape(writer: GGUFWriter, shape: ModelShape, vocab_size: int) -> None:
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_vocab_size(vocab_size)


def _add_vocabulary(writer: GGUFWriter, law: Law, vocab_size: int) -> None:
    states = [law.marker(state) for state in range(1, law.n_states)]
    filler = range(FIRST_STATE_TOKEN + len(states), vocab_size)
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *states]
    texts += [f"<unused:{token}>" for token in filler]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.USER_DEFINED] * len(states)
    types += [TokenType.UNUSED] * len(filler)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * vocab_size)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
