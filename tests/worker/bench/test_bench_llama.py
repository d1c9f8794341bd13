"""The thin layer over llama.cpp: tokens in, logits out, and a cache that knows its length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from loaded_pair import LoadedPair

from farm.gguf.calibration import Law
from worker.bench.drafters import ModelDrafter
from worker.bench.failure import Failure
from worker.bench.llama import BATCH_TOKENS, Context, Model, describe_build
from worker.bench.sampling import Greedy

ROUNDING_LOGITS = 0.02
"""Passes of other widths may sum in another order; the entangled pair's logits spread over 7."""


def cells_in_use(context: Context) -> int:
    """Return the length of the sequence as llama.cpp itself counts it."""
    return int(lib.llama_memory_seq_pos_max(context._memory, 0)) + 1


def some_tokens(law: Law, count: int, seed: int = 0) -> list[int]:
    """Return random tokens of the pair's states."""
    rng = np.random.default_rng(seed)
    return rng.integers(law.token(1), law.token(law.n_states - 1), count).tolist()


def one_by_one(context: Context, tokens: list[int]) -> np.ndarray:
    """Return the last token's logits after feeding one token per pass."""
    context.clear()
    for token in tokens:
        logits = context.decode((token,))
    return logits[0].copy()


def test_the_entangled_pair_remembers_its_sequence(entangled: LoadedPair, law: Law):
    tokens = some_tokens(law, 40)
    swapped = [tokens[1], tokens[0], *tokens[2:]]

    moved = one_by_one(entangled.target, tokens) - one_by_one(entangled.target, swapped)

    assert np.abs(moved).max() > 10 * ROUNDING_LOGITS


def test_a_step_is_a_pass_of_one_token(entangled: LoadedPair, law: Law):
    tokens = some_tokens(law, 20)
    expected = one_by_one(entangled.target, tokens)
    entangled.target.clear()

    for token in tokens:
        logits = entangled.target.step(token)

    assert entangled.target.length == len(tokens)
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("count", [1, BATCH_TOKENS, BATCH_TOKENS + 1, 2 * BATCH_TOKENS + 76])
def test_a_prompt_in_several_passes_equals_one_token_at_a_time(
    entangled: LoadedPair, law: Law, count: int
):
    tokens = some_tokens(law, count)
    expected = one_by_one(entangled.target, tokens)
    entangled.target.clear()

    logits = entangled.target.prefill(tokens)

    np.testing.assert_allclose(logits, expected, atol=ROUNDING_LOGITS)
    assert logits.argmax() == expected.argmax()
    assert entangled.target.length == cells_in_use(entangled.target) == count


def test_one_pass_gives_every_tokens_logits_in_order(entangled: LoadedPair, law: Law):
    tokens = some_tokens(law, 9)
    context = entangled.target
    context.clear()
    context.prefill(tokens[:3])

    logits = context.decode(tokens[3:]).copy()

    assert logits.shape == (6, entangled.target_model.vocab_tokens)
    for row, end in zip(logits, range(4, 10), strict=True):
        np.testing.assert_allclose(row, one_by_one(context, tokens[:end]), atol=ROUNDING_LOGITS)


def test_random_rounds_leave_the_cache_as_a_fresh_one_would_be(entangled: LoadedPair, law: Law):
    rng = np.random.default_rng(1)
    context = entangled.target
    context.clear()
    standing: list[int] = []
    for step in range(60):
        fed = some_tokens(law, int(rng.integers(1, 18)), seed=step)
        logits = context.decode(fed)[-1].copy()
        if step % 12 == 11:
            again = one_by_one(context, [*standing, *fed])
            np.testing.assert_allclose(logits, again, atol=ROUNDING_LOGITS)
        standing += fed
        keep = int(rng.integers(len(standing) - len(fed), len(standing) + 1))
        context.roll_back(keep)
        del standing[keep:]
        assert context.length == cells_in_use(context) == len(standing)


def test_drafting_and_rejecting_at_random_keeps_both_counts_of_the_cache_equal(
    entangled: LoadedPair, law: Law
):
    rng = np.random.default_rng(2)
    context = entangled.draft
    drafter = ModelDrafter(context, Greedy(), entangled.target_model.vocab_tokens, 0.0, 0)
    tokens = some_tokens(law, 20)
    drafter.begin(tokens[:-1])
    for _ in range(40):
        proposal = drafter.propose(tokens, int(rng.integers(0, 9)))
        assert context.length == cells_in_use(context)
        accepted = int(rng.integers(0, len(proposal.tokens) + 1))
        tokens += [*proposal.tokens[:accepted], int(law.token(1 + rng.integers(100)))]
        drafter.keep(len(tokens) - 1)
        assert context.length == cells_in_use(context) <= len(tokens) - 1
    expected = one_by_one(context, tokens).argmax()
    drafter.begin(tokens)
    assert drafter.propose(tokens, 1).tokens == [expected]


def test_rolling_back_to_the_end_or_past_it_changes_nothing(loaded: LoadedPair, law: Law):
    loaded.target.clear()
    loaded.target.prefill(some_tokens(law, 5))

    for length in (5, 6, 99):
        loaded.target.roll_back(length)
        assert loaded.target.length == cells_in_use(loaded.target) == 5


def test_rolling_back_to_nothing_is_a_fresh_start(entangled: LoadedPair, law: Law):
    tokens = some_tokens(law, 12)
    expected = one_by_one(entangled.target, tokens)
    entangled.target.roll_back(0)

    assert entangled.target.length == cells_in_use(entangled.target) == 0
    np.testing.assert_allclose(entangled.target.prefill(tokens), expected, atol=ROUNDING_LOGITS)


def test_a_full_context_is_a_failure_that_says_so(
    loaded: LoadedPair, law: Law, one_thread_payload: dict[str, Any]
):
    small = loaded.draft_model.context(one_thread_payload | {"context_tokens": 256})
    small.prefill(some_tokens(law, 250))

    with pytest.raises(Failure, match="the context is full") as caught:
        small.decode(some_tokens(law, 20))

    assert caught.value.kind == "bad-request"
    assert small.length == 250


def test_every_byte_of_a_text_without_words_is_a_token(loaded: LoadedPair):
    text = "".join(chr(code) for code in range(0x3B1, 0x3C9)) + "\U0001f600\n\t~" * 500

    tokens = loaded.target_model.tokenize(text)

    assert tokens == [3 + byte for byte in text.encode()]


def test_a_text_with_more_tokens_than_bytes_is_tokenised_whole(loaded: LoadedPair):
    # The vocabulary writes a space as three bytes, and has a token for none of them together.
    tokens = loaded.target_model.tokenize(" " * 3000)

    assert len(tokens) == 9000
    assert len(set(tokens)) == 3


def test_markers_are_single_tokens_wherever_they_stand(loaded: LoadedPair, law: Law):
    first, last = law.marker(1), law.marker(law.n_states - 1)

    tokens = loaded.target_model.tokenize(f"{first}x{last}")

    assert tokens == [law.token(1), 3 + ord("x"), law.token(law.n_states - 1)]


def test_a_null_byte_does_not_cut_the_text(loaded: LoadedPair):
    assert loaded.target_model.tokenize("a\0b") == [3 + ord("a"), 3, 3 + ord("b")]


def test_no_text_has_no_tokens(loaded: LoadedPair):
    assert loaded.target_model.tokenize("") == []


def test_only_the_end_token_ends_a_text(loaded: LoadedPair):
    ends = [t for t in range(loaded.target_model.vocab_tokens) if loaded.target_model.ends_text(t)]

    assert ends == [2]


def test_a_file_that_is_no_model_fails_by_name(backend: None, tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but nothing else")

    with pytest.raises(Failure, match=r"broken\.gguf") as caught:
        Model(str(path), 0)

    assert caught.value.kind == "load-failed"


def test_settings_that_llama_cpp_refuses_fail_by_name(
    loaded: LoadedPair, one_thread_payload: dict[str, Any]
):
    # A quantised V cache needs flash attention.
    refused = one_thread_payload | {"cache_type_v": "q8_0", "flash_attention": "off"}

    with pytest.raises(Failure, match="could not make a context") as caught:
        loaded.target_model.context(refused)

    assert caught.value.kind == "load-failed"


def test_the_build_is_described_alike_each_time():
    build = describe_build()

    assert build == describe_build()
    assert build["name"].startswith("llama-cpp-python==")
    assert len(build["digest"]) == 64
    assert build["system_info"]
