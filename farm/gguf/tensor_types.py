"""How many bytes weights take in ggml's storage types."""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType


def type_bytes(kind: GGMLQuantizationType, elements: int) -> int:
    """Return the bytes of that many elements, the last block counted whole."""
    block: int
    size: int
    block, size = GGML_QUANT_SIZES[kind]
    return -(-elements // block) * size


def block_elements(name: str) -> int:
    """Return how many values a storage type packs together, 1 where each stands alone."""
    block: int = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][0]
    return block
