"""A mixture of experts of a few MB: random weights, real routing, a calibration pair's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from farm.gguf.calibration import Law
from farm.gguf.calibration_shapes import ModelShape
from farm.gguf.calibration_writer import _add_shape, _add_vocabulary

EXPERTS = 4
USED = 2
SHAPE = ModelShape(n_layer=2, n_embd=64, n_ff=96, n_head=2, n_head_kv=2, head_dim=32)


def write_mixture(path: Path, law: Law, seed: int = 0, chat_template: str = "") -> Path:
    """Write a llama of EXPERTS experts, USED of them for each token.

    Each expert's output is as large as the residual stream, so that another number of experts
    gives other words at once.
    """
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)

    width, inner, heads = SHAPE.n_embd, SHAPE.n_ff, SHAPE.n_head * SHAPE.head_dim
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny random mixture, not a language model")
    _add_shape(writer, SHAPE, law.vocab_size)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    if chat_template:
        writer.add_chat_template(chat_template)
    _add_vocabulary(writer, law, law.vocab_size)
    tensors = {
        "token_embd.weight": random(law.vocab_size, width) * np.sqrt(width),
        "output_norm.weight": np.ones(width),
        "output.weight": random(law.vocab_size, width),
    }
    for layer in range(SHAPE.n_layer):
        block = {
            "attn_norm": np.ones(width),
            "attn_q": random(heads, width),
            "attn_k": random(heads, width),
            "attn_v": random(heads, width),
            "attn_output": random(width, heads),
            "ffn_norm": np.ones(width),
            "ffn_gate_inp": random(EXPERTS, width),
            "ffn_gate_exps": 3 * random(EXPERTS, inner, width),
            "ffn_up_exps": 3 * random(EXPERTS, inner, width),
            "ffn_down_exps": 3 * random(EXPERTS, width, inner),
        }
        tensors |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
    for name, value in tensors.items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
