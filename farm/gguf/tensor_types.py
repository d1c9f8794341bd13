"""How many bytes weights take in ggml's storage types."""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType


def type_bytes(kind: GGMLQuantizationType, elements: int) -> int:
    """Return the bytes of that many elements, the last block counted whole."""
    block: int
    size: int
    block, size = GGML_QUANT_SIZES[kind]
    return -(-elements // block) * size
