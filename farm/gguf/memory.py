"""How much memory a model needs, from its header."""

from __future__ import annotations

from gguf import GGMLQuantizationType

from farm.domain.decoding import Settings
from farm.errors import UserError
from farm.gguf.header import Array, Header
from farm.gguf.tensor_types import type_bytes

CACHE_PADDING_TOKENS = 256
"""llama.cpp pads the context to this many cells (llama_context, GGML_PAD of n_ctx)."""

BATCH_TOKENS = 512
"""llama.cpp's default physical batch (`-ub`), which its compute buffers are sized for."""

FIXED_BYTES = 64 * 1024 * 1024
"""Allowance for what does not scale: graphs, vocabulary, the backend's own buffers."""


def memory_need_bytes(
    header: Header,
    context_tokens: int,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    sequences: int = 1,
) -> int:
    """Return the bytes one loaded context needs: weights, key-value cache, compute buffers.

    sequences: how many are decoded at once, each with context_tokens of its own. The cache counts
    every layer at full length, so sliding-window and recurrent layers come out too high. The
    compute allowance is one batch of float32 logits and of the widest activations,
    plus `FIXED_BYTES`; flash attention is assumed, without it long contexts need more.
    Raises: UserError for an unknown cache type or a header without a shape.
    """
    width, vocab = header.n_embd or 0, header.vocab_size or 0
    if not header.n_layer or not width:
        raise UserError(
            f"{header.path} does not state its layer count and width, so its memory need is "
            f"unknown; use another copy of the model."
        )
    activations = 4 * width + 2 * (header.arch_number("feed_forward_length") or 4 * width)
    compute = BATCH_TOKENS * 4 * (vocab + activations)
    cache = sequences * cache_bytes(header, context_tokens, cache_type_k, cache_type_v)
    return header.tensor_bytes + cache + compute + FIXED_BYTES


def pair_need_bytes(settings: Settings, target: Header, draft: Header | None) -> tuple[int, ...]:
    """Return what the target needs and, where there is one, the draft, each with its own cache."""
    tokens, sequences = settings.context_tokens, settings.concurrent_requests
    types = settings.cache_type_k, settings.cache_type_v
    need = memory_need_bytes(target, tokens, *types, sequences)
    if draft is None:
        return (need,)
    return need, memory_need_bytes(draft, tokens, *settings.draft_cache_types, sequences)


def head_sizes(header: Header) -> tuple[int, int]:
    """Return how many values a head's key and value have; 0 for a model without attention."""
    default = (header.n_embd or 0) // (header.n_head or 1) if header.n_head else 0
    keys = header.arch_number("attention.key_length") or default
    return keys, header.arch_number("attention.value_length") or default


def cache_bytes(header: Header, context_tokens: int, cache_type_k: str, cache_type_v: str) -> int:
    """Return the bytes of the key-value cache for that many tokens of context."""
    cells = -(-context_tokens // CACHE_PADDING_TOKENS) * CACHE_PADDING_TOKENS
    heads = _heads_of_all_layers(header)
    keys, values = head_sizes(header)
    return cells * (
        _bytes(cache_type_k, heads * keys, "K") + _bytes(cache_type_v, heads * values, "V")
    )


def _heads_of_all_layers(header: Header) -> int:
    value = header.metadata.get(f"{header.architecture}.attention.head_count_kv")
    if isinstance(value, Array):
        return sum(int(heads) for heads in value.values())
    return (header.n_head_kv or 0) * (header.n_layer or 0)


def _bytes(cache_type: str, elements: int, which: str) -> int:
    try:
        kind = GGMLQuantizationType[cache_type.upper()]
    except KeyError:
        raise UserError(
            f"There is no {which} cache type '{cache_type}'; "
            f"use f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl."
        ) from None
    return type_bytes(kind, elements)
