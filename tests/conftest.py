"""What the tests of more than one folder use."""

from __future__ import annotations

import pytest
from trained_heads import TrainedHeads, all_heads

from farm.gguf.calibration import law_of, make_pair
from farm.gguf.header import read_header


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedHeads]:
    """Return a draft of each kind that is trained for its target, with the tiny pair's law."""
    folder = tmp_path_factory.mktemp("heads")
    target, _ = make_pair("tiny", "f16", folder)
    return all_heads(folder, target, law_of(read_header(target)))
