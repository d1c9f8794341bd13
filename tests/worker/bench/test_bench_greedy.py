"""Temperature 0 on real llama.cpp: speculation changes no token, and counts what it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import llama_cpp as lib
from loaded_pair import LoadedPair

from farm.domain.prompt import Category
from farm.gguf.calibration import Law, calibration_prompt, law_of, make_pair, start_state
from farm.gguf.header import read_header
from farm.science.parity import NEAR_TIE_LOGITS
from worker.bench.decode import Run, baseline, speculative, top_two_margin
from worker.bench.drafters import Drafter, ModelDrafter, PromptLookup
from worker.bench.sampling import Greedy

TOKENS = 40
TEXT = "The same words for every category, so that only the marker at the end differs."
K_VALUES = (1, 2, 4, 8, 16)


def never(_token: int) -> bool:
    return False


def plain(pair: LoadedPair, prompt: list[int], tokens: int = TOKENS, ends=never) -> Run:
    return baseline(pair.target, Greedy(), prompt, tokens, ends)


def with_draft(
    pair: LoadedPair,
    prompt: list[int],
    n_max: int,
    tokens: int = TOKENS,
    p_min: float = 0.0,
    n_min: int = 0,
    ends: Callable[[int], bool] = never,
) -> Run:
    drafter = ModelDrafter(pair.draft, Greedy(), pair.target_model.vocab_tokens, p_min, n_min)
    return speculated(pair, drafter, prompt, n_max, tokens, ends)


def speculated(
    pair: LoadedPair,
    drafter: Drafter,
    prompt: list[int],
    n_max: int,
    tokens: int = TOKENS,
    ends: Callable[[int], bool] = never,
) -> Run:
    return speculative(pair.target, drafter, Greedy(), prompt, tokens, n_max, ends)


def prompt_of(pair: LoadedPair, law: Law, category: str, index: int = 0) -> list[int]:
    return pair.target_model.tokenize(calibration_prompt(law, category, TEXT, index))


def expect_exact_counts(run: Run, law: Law, start: int, n_max: int, tokens: int = TOKENS) -> None:
    """Compare with the law's counts. A run's rounds are its passes, so a last pass that could
    draft nothing is one of them; the law counts it in target_passes only."""
    counts = law.greedy_rounds(start, tokens, n_max)
    assert run.rounds == counts.target_passes
    assert run.drafted == counts.drafted
    assert run.accepted == counts.accepted
    assert tuple(run.drafted_per_position) == counts.drafted_per_position
    assert tuple(run.accepted_per_position) == counts.accepted_per_position
    assert sum(position > 0 for position in run.drafted_per_position) <= n_max
    assert run.drafted_per_position[0] == counts.rounds


def expect_same_text(pair: LoadedPair, prompt: list[int], expected: list[int], run: Run) -> None:
    """Compare outputs. Passes of other widths may round differently, and a near tie turn on it."""
    if run.output_ids != expected:
        pairs = enumerate(zip(expected, run.output_ids, strict=True))
        position = next(index for index, (left, right) in pairs if left != right)
        margin = top_two_margin(pair.target, prompt, expected, position)
        assert margin is not None
        assert margin < NEAR_TIE_LOGITS


@pytest.mark.parametrize("category", Category)
@pytest.mark.parametrize("n_max", K_VALUES)
def test_output_and_counts_are_the_laws_own(
    loaded: LoadedPair, law: Law, category: Category, n_max: int
):
    prompt = prompt_of(loaded, law, category)
    start = start_state(law, category, TEXT)

    run = with_draft(loaded, prompt, n_max)

    assert tuple(run.output_ids) == law.greedy_walk(start, TOKENS)
    assert run.output_ids == plain(loaded, prompt).output_ids
    expect_exact_counts(run, law, start, n_max)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_short_generations_never_draft_past_their_end(loaded: LoadedPair, law: Law, tokens: int):
    prompt = prompt_of(loaded, law, "chat")
    start = start_state(law, "chat", TEXT)

    run = with_draft(loaded, prompt, n_max=8, tokens=tokens)

    assert tuple(run.output_ids) == law.greedy_walk(start, tokens)
    expect_exact_counts(run, law, start, 8, tokens)


@pytest.fixture
def plain_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep quantised weights as they are in the file.

    llama.cpp repacks them for AMX where it finds that, and its AMX product crashes on some
    virtual machines (ggml-org/llama.cpp issue 20824), which would take the tests down.
    """
    defaults = lib.llama_model_default_params

    def without_repacking() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(lib, "llama_model_default_params", without_repacking)


@pytest.mark.parametrize("quantisation", ["q8_0", "q4_0", "q4_k"])
def test_quantised_pairs_follow_the_same_law(
    backend: None,
    plain_buffers: None,
    quantisation: str,
    tmp_path: Path,
    one_thread_payload: dict[str, Any],
):
    paths = make_pair("tiny", quantisation, tmp_path)
    law = law_of(read_header(paths[0]))
    pair = LoadedPair.load(paths, one_thread_payload | {"context_tokens": 256})
    for category in ("code-generation", "creative-prose"):
        prompt = prompt_of(pair, law, category)
        start = start_state(law, category, TEXT)

        run = with_draft(pair, prompt, n_max=4)

        assert tuple(run.output_ids) == law.greedy_walk(start, TOKENS)
        assert run.output_ids == plain(pair, prompt).output_ids
        expect_exact_counts(run, law, start, 4)


@pytest.mark.parametrize("n_max", K_VALUES)
def test_a_target_that_remembers_its_text_keeps_its_output(
    entangled: LoadedPair, law: Law, n_max: int
):
    prompt = prompt_of(entangled, law, "chat")
    expected = plain(entangled, prompt, 60).output_ids

    run = with_draft(entangled, prompt, n_max, tokens=60)

    expect_same_text(entangled, prompt, expected, run)


def test_a_draft_equal_to_its_target_is_always_accepted(entangled: LoadedPair, law: Law):
    twin = LoadedPair(
        entangled.target_model,
        entangled.target_model,
        entangled.target,
        entangled.target_model.context(
            {"context_tokens": 512, "threads": 1, "batch_threads": 1, "cache_type_k": "f16",
             "cache_type_v": "f16", "flash_attention": "auto"}
        ),
    )  # fmt: skip
    prompt = prompt_of(twin, law, "tool-calls")

    run = with_draft(twin, prompt, n_max=4, tokens=60)

    # A single token too many or too few in either cache would end the agreement.
    expected = plain(twin, prompt, 60).output_ids
    margins = [top_two_margin(twin.target, prompt, expected, at) for at in range(60)]
    near_ties = sum(margin is not None and margin < NEAR_TIE_LOGITS for margin in margins)
    assert run.rounds - 60 // 5 <= near_ties


@pytest.mark.parametrize("p_min", [0.55, 0.6, 0.65, 1.0])
@pytest.mark.parametrize("n_min", [0, 1, 3])
def test_stopping_early_stays_lossless(loaded: LoadedPair, law: Law, p_min: float, n_min: int):
    for category in ("code-completion", "creative-prose"):
        prompt = prompt_of(loaded, law, category)

        run = with_draft(loaded, prompt, n_max=6, p_min=p_min, n_min=n_min)

        assert run.output_ids == plain(loaded, prompt).output_ids
        lengths = run.drafted_per_position
        assert lengths == sorted(lengths, reverse=True)
        if n_min:
            # Whatever was drafted at all was n_min long.
            assert lengths[0] == lengths[n_min - 1]


def test_a_higher_p_min_drafts_less_and_wastes_less(loaded: LoadedPair, law: Law):
    totals = []
    for p_min in (0.0, 0.55, 0.65, 1.0):
        runs = [
            with_draft(loaded, prompt_of(loaded, law, "chat", index), 6, p_min=p_min)
            for index in range(4)
        ]
        totals.append((sum(r.drafted for r in runs), sum(r.drafted - r.accepted for r in runs)))

    assert totals == sorted(totals, reverse=True)
    assert totals[0][0] > totals[1][0] > totals[2][0] > totals[3][0] == 0


@pytest.mark.parametrize("n_max", [1, 4, 16])
def test_prompt_lookup_stays_lossless(loaded: LoadedPair, law: Law, n_max: int):
    # The greedy path is a ring of 31 states: after one lap, lookup knows all that follows.
    prompt = prompt_of(loaded, law, "summarisation")

    run = speculated(loaded, PromptLookup(0), prompt, n_max, tokens=90)

    assert run.output_ids == plain(loaded, prompt, 90).output_ids
    assert run.accepted == run.drafted > 20


def test_prompt_lookup_stays_lossless_where_it_is_mostly_wrong(entangled: LoadedPair, law: Law):
    prompt = prompt_of(entangled, law, "chat") * 3
    expected = plain(entangled, prompt, 60).output_ids

    run = speculated(entangled, PromptLookup(0), prompt, 4, tokens=60)

    assert 0 < run.accepted < run.drafted
    expect_same_text(entangled, prompt, expected, run)


@pytest.mark.parametrize("n_max", K_VALUES)
@pytest.mark.parametrize("at", [0, 1, 6, 7, 8])
def test_both_arms_end_with_the_token_that_ends_the_text(
    loaded: LoadedPair, law: Law, n_max: int, at: int
):
    prompt = prompt_of(loaded, law, "code-completion")
    walk = law.greedy_walk(start_state(law, "code-completion", TEXT), TOKENS)

    def ends(token: int) -> bool:
        return token == walk[at]

    run = with_draft(loaded, prompt, n_max, ends=ends)

    assert run.output_ids == list(walk[: at + 1])
    assert plain(loaded, prompt, ends=ends).output_ids == list(walk[: at + 1])
    # Accepted tokens and one of the target's own per round, the last of which the end may cut.
    assert at - run.rounds <= run.accepted <= at
    assert sum(run.accepted_per_position) == run.accepted <= run.drafted


def test_every_token_but_the_first_is_one_of_a_round(loaded: LoadedPair, law: Law):
    for category in Category:
        run = with_draft(loaded, prompt_of(loaded, law, category), n_max=5)

        assert 1 + run.rounds + run.accepted == len(run.output_ids) == TOKENS
        assert sum(run.drafted_per_position) == run.drafted
        assert sum(run.accepted_per_position) == run.accepted


def test_the_margin_is_the_gap_of_the_two_best_logits(loaded: LoadedPair, law: Law):
    prompt = prompt_of(loaded, law, "chat")
    output = plain(loaded, prompt, 10).output_ids

    for position in (0, 4, 10):
        # The favourite leads by three steps of half a logit, in every state.
        assert top_two_margin(loaded.target, prompt, output, position) == pytest.approx(1.5)
    assert top_two_margin(loaded.target, prompt, output, 11) is None


def test_a_run_starts_afresh_whatever_ran_before(entangled: LoadedPair, law: Law):
    first, second = (prompt_of(entangled, law, name) for name in ("chat", "tool-calls"))
    expected = with_draft(entangled, first, 4).output_ids

    with_draft(entangled, second, 8)

    assert with_draft(entangled, first, 4).output_ids == expected
