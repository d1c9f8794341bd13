from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFValueType

from farm.domain.decoding import Settings
from farm.errors import UserError
from farm.gguf.header import Array, read_header
from farm.gguf.memory import (
    BATCH_TOKENS,
    FIXED_BYTES,
    cache_bytes,
    memory_need_bytes,
    pair_need_bytes,
)

Write = Callable[..., Path]


def test_known_answer(write_gguf: Write) -> None:
    header = read_header(write_gguf())
    # 2 layers, 2 kv heads of 32/4 values, 256 cells, K and V in f16
    assert cache_bytes(header, 200, "f16", "f16") == 256 * 2 * (2 * 2 * 8) * 2
    assert cache_bytes(header, 257, "q8_0", "f16") == 512 * (34 + 64)
    compute = BATCH_TOKENS * 4 * (10 + 4 * 32 + 2 * 4 * 32)
    assert memory_need_bytes(header, 200) == header.tensor_bytes + 32_768 + compute + FIXED_BYTES


def test_a_real_outline(tiny_pair: tuple[Path, Path]) -> None:
    header = read_header(tiny_pair[0])
    assert cache_bytes(header, 1024, "f16", "f16") == 1024 * 2 * 2 * 64 * 2 * 2


def test_layers_may_differ_in_heads(write_gguf: Write) -> None:
    header = read_header(write_gguf())
    heads = Array(GGUFValueType.UINT32, 2, b"\x02\0\0\0\0\0\0\0")
    fields = {**header.metadata, "llama.attention.head_count_kv": heads}
    assert cache_bytes(replace(header, metadata=fields), 200, "f16", "f16") == 256 * 2 * 8 * 2 * 2


def test_a_pair_has_two_caches_of_its_own_types(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = (read_header(path) for path in tiny_pair)
    settings = Settings(1024, cache_type_k="q8_0", draft_cache_type_v="q4_0")
    assert pair_need_bytes(settings, target, draft) == (
        memory_need_bytes(target, 1024, "q8_0", "f16"),
        memory_need_bytes(draft, 1024, "q8_0", "q4_0"),
    )
    assert len(pair_need_bytes(settings, target, None)) == 1


def test_unknown_cache_type_and_shape(write_gguf: Write) -> None:
    header = read_header(write_gguf())
    with pytest.raises(UserError, match="no K cache type 'q9'"):
        memory_need_bytes(header, 128, "q9")
    with pytest.raises(UserError, match="does not state"):
        memory_need_bytes(replace(header, metadata={}), 128)
