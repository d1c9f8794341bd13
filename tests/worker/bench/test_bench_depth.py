"""Other text before the prompt: exactly as many tokens as asked for, and one beginning of text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader

from worker.bench.depth import at_depth
from worker.bench.llama import Model

BOS = 1


def test_the_filler_starts_over_and_is_cut_to_the_depth() -> None:
    assert at_depth([7, 8], [7, 8], [1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1, 7, 8]
    assert at_depth([7, 8], [7, 8], [1, 2, 3], 2) == [1, 2, 7, 8]
    assert at_depth([7, 8], [7, 8], [], 0) == [7, 8]


def test_what_stands_around_a_text_stays_outside() -> None:
    assert at_depth([BOS, 7, 8, 2], [7, 8], [5], 3) == [BOS, 5, 5, 5, 7, 8, 2]


def test_a_text_that_begins_like_every_text_keeps_both_beginnings() -> None:
    assert at_depth([BOS, BOS, 7], [BOS, 7], [5], 1) == [BOS, 5, BOS, 7]


def test_nothing_to_fill_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        at_depth([7], [7], [], 1)


@pytest.fixture(scope="module")
def with_bos(
    backend: None, tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Model:
    """Return the tiny target, changed to begin every text with BOS."""
    path = Path(shutil.copy(tiny_pair[0], tmp_path_factory.mktemp("bos") / "bos.gguf"))
    field = GGUFReader(path, "r+").fields["tokenizer.ggml.add_bos_token"]
    field.parts[field.data[0]][:] = True
    return Model(str(path), 0)


def test_a_models_own_beginning_comes_once_and_first(with_bos: Model) -> None:
    prompt, bare = with_bos.tokenize("hello"), with_bos.tokenize("hello", bare=True)
    filler = with_bos.tokenize("other text", bare=True)

    tokens = at_depth(prompt, bare, filler, 300)

    assert tokens[0] == BOS
    assert tokens.count(BOS) == 1
    assert tokens[-len(bare) :] == bare
    assert len(tokens) == 300 + len(prompt)
    assert tokens[1 : 1 + len(filler)] == filler
