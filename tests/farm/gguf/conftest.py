"""Small GGUF files, written by the gguf package itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from farm.gguf.calibration import make_pair

TEXTS = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a model: name, texts, architecture, tensor rows, other fields."""

    def write(
        name: str = "model.gguf",
        texts: Sequence[str | bytes] = TEXTS,
        architecture: str = "llama",
        rows: int = 4,
        model: str | None = "llama",
        **fields: Any,
    ) -> Path:
        path = tmp_path / name
        writer = GGUFWriter(path, architecture)
        writer.add_name("small")
        writer.add_block_count(2)
        writer.add_embedding_length(32)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_context_length(128)
        writer.add_file_type(1)
        if model:
            writer.add_tokenizer_model(model)
        if texts:
            writer.add_array("tokenizer.ggml.tokens", texts)
        for key, value in fields.items():
            key = f"tokenizer.ggml.{key}"
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_string(key, value)
        if rows:
            writer.add_tensor("a.weight", np.arange(32 * rows, dtype=np.float16).reshape(rows, 32))
            writer.add_tensor("b.weight", np.ones(32, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair("tiny", "f16", tmp_path_factory.mktemp("pair"), seed=3)


@pytest.fixture(scope="session")
def real_vocabularies() -> Path:
    """The vocabulary-only models of a llama.cpp source tree named by FARM_LLAMA_SOURCE."""
    source = os.environ.get("FARM_LLAMA_SOURCE")
    folder = Path(source, "models") if source else None
    if folder is None or not folder.is_dir():
        pytest.fail(
            "FARM_LLAMA_SOURCE names no llama.cpp source tree; run the tests by `make test`"
        )
    return folder
