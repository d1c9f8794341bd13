"""Models and contexts of real llama.cpp, loaded once for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from loaded_pair import LoadedPair

from worker.bench.llama import start_backend


@pytest.fixture(scope="session")
def backend() -> None:
    """Start llama.cpp once."""
    start_backend()


@pytest.fixture(scope="session")
def loaded(
    backend: None, tiny_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]
) -> LoadedPair:
    """Return the tiny pair in memory."""
    return LoadedPair.load(tiny_pair, one_thread_payload)


@pytest.fixture(scope="session")
def entangled_pair(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return the tiny pair with random weights where a calibration model has zeros.

    Its logits depend on the whole sequence and its positions, so that a token too many, too few
    or in the wrong place in the cache shows.
    """
    folder = tmp_path_factory.mktemp("entangled")
    rng = np.random.default_rng(5)
    for path in tiny_pair:
        copy = shutil.copy(path, folder / path.name)
        for tensor in GGUFReader(copy, "r+").tensors:
            if "attn_output" in tensor.name or "ffn_down" in tensor.name:
                tensor.data[:] = rng.normal(0, 0.3, tensor.data.shape)
    return folder / tiny_pair[0].name, folder / tiny_pair[1].name


@pytest.fixture(scope="session")
def entangled(
    backend: None, entangled_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]
) -> LoadedPair:
    """Return the entangled pair in memory."""
    return LoadedPair.load(entangled_pair, one_thread_payload)
