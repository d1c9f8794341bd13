from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.domain.decoding import AcceptRule
from farm.domain.prompt import Category
from farm.errors import UserError
from farm.gguf.calibration import (
    CHARACTERS_PER_TOKEN,
    RESEMBLING_AGREEMENT,
    SHAPES,
    Law,
    calibration_prompt,
    start_state,
)
from farm.gguf.calibration_acceptance import expect, stationary
from farm.gguf.calibration_tables import TEXT_STATE

CATEGORIES = tuple(category.value for category in Category)
SHARES = tuple(RESEMBLING_AGREEMENT[category] for category in Category)
LAW = Law(seed=7, states_per_category=127, categories=CATEGORIES, agreement=SHARES, vocab_size=1300)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
def test_probabilities_sum_to_one(temperature: float) -> None:
    for state in (0, 1, 500, LAW.n_states - 1):
        for law in (LAW.target_probabilities, LAW.draft_probabilities):
            probabilities = law(state, temperature)
            assert probabilities.shape == (1300,)
            assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
            assert probabilities[:259].sum() == 0.0


def test_every_state_of_a_ring_is_equally_likely() -> None:
    for category in CATEGORIES:
        for temperature in (0.0, 0.8):
            target, _ = LAW.ring(category, temperature)
            assert np.allclose(target.sum(axis=1), 1.0)
            assert np.allclose(target.sum(axis=0), 1.0), "uniform is stationary"


def test_the_greedy_path_is_one_full_cycle() -> None:
    for category in CATEGORIES:
        states = LAW.states(category)
        walk = LAW.greedy_walk(states[5], len(states))
        assert {LAW.state(token) for token in walk} == set(states)
        assert LAW.state(walk[-1]) == states[5]
    assert LAW.state(LAW.greedy_walk(0, 1)[0]) in LAW.states(CATEGORIES[0])


def test_the_share_of_agreement_is_as_asked() -> None:
    for category, share in zip(CATEGORIES, SHARES, strict=True):
        agrees = LAW.agrees[list(LAW.states(category))]
        assert agrees.sum() == round(share * 127)


def test_the_first_two_never_tie_in_either_model() -> None:
    for logits in (LAW.target_logits, LAW.draft_logits):
        ordered = np.sort(logits, axis=1)
        assert (ordered[:, -1] - ordered[:, -2] >= 0.5).all()


def test_survives_json_and_depends_on_its_seed_alone() -> None:
    again = Law.from_json(LAW.to_json())
    assert again == LAW
    assert np.array_equal(again.draft_logits, LAW.draft_logits)
    fields = json.loads(LAW.to_json()) | {"seed": 8}
    assert not np.array_equal(Law.from_json(json.dumps(fields)).successors, LAW.successors)
    with pytest.raises(UserError, match="cannot be read"):
        Law.from_json('{"seed": 1}')


def test_the_law_is_pinned() -> None:
    """A file made today must be understood by every later version: these may never change."""
    small = Law(1, 9, ("chat", "prose"), (0.5, 1.0), 400)
    assert small.greedy_walk(1, 5) == KNOWN_WALK
    assert [int(flag) for flag in small.agrees[1:10]] == KNOWN_AGREEMENT


KNOWN_WALK = (260, 261, 262, 263, 264)
KNOWN_AGREEMENT = [0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_known_answers_with_one_state_per_move() -> None:
    """With independent acceptance a: rate (a + a^2 + ... + a^K) / K (arXiv 2211.17192, eq. 1)."""
    target = np.full((4, 4), 0.25)
    draft = np.tile([0.55, 0.15, 0.15, 0.15], (4, 1))
    a = 0.25 + 3 * 0.15
    result = expect(target, draft, 3, AcceptRule.EXACT)
    assert result.accepted_at == pytest.approx((a, a**2, a**3))
    assert result.tokens_per_round == pytest.approx((1 - a**4) / (1 - a))
    assert expect(target, draft, 3, AcceptRule.MATCH).accepted_at[0] == pytest.approx(0.25)
    assert expect(target, target, 8, AcceptRule.EXACT).rate == pytest.approx(1.0)


def test_time_averages_of_periodic_chains() -> None:
    swap = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert stationary(swap) == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("n_max", [1, 3, 8])
@pytest.mark.parametrize("category", ["code-completion", "chat", "creative-prose"])
def test_greedy_expectation_is_the_average_over_long_runs(category: str, n_max: int) -> None:
    drafted = accepted = 0.0
    for start in LAW.states(category):
        long = LAW.greedy_rounds(start, 9001, n_max, cap_last=False)
        short = LAW.greedy_rounds(start, 3001, n_max, cap_last=False)
        drafted += (long.drafted - short.drafted) / (long.rounds - short.rounds)
        accepted += (long.accepted - short.accepted) / (long.rounds - short.rounds)
    expected = LAW.expected_acceptance(category, n_max, 0.0)
    assert accepted / drafted == pytest.approx(expected.rate, abs=2e-3)


def _simulated_rounds(
    category: str, n_max: int, temperature: float, accept: AcceptRule, rounds: int
) -> np.ndarray:
    """Accepted tokens per round of a run that draws every token: shape (rounds,)."""
    target, draft = LAW.ring(category, temperature)
    rng = np.random.default_rng(11)
    n, state, counts = len(target), 0, []
    for _ in range(rounds):
        accepted, current = 0, state
        for _ in range(n_max):
            p, q = target[current], draft[current]
            if accept is AcceptRule.MATCH:
                proposed, drawn = int(q.argmax()), int(rng.choice(n, p=p))
                if proposed != drawn:
                    state = drawn
                    break
            else:
                proposed = int(rng.choice(n, p=q))
                if rng.random() >= min(1.0, p[proposed] / q[proposed]):
                    left = np.maximum(p - q, 0.0)
                    state = int(rng.choice(n, p=left / left.sum()))
                    break
            accepted, current = accepted + 1, proposed
        else:
            state = int(rng.choice(n, p=target[current]))
        counts.append(accepted)
    return np.array(counts)


@pytest.mark.parametrize("accept", list(AcceptRule))
@pytest.mark.parametrize(("category", "n_max"), [("code-generation", 4), ("creative-prose", 2)])
def test_sampled_expectation_agrees_with_a_simulation(
    category: str, n_max: int, accept: AcceptRule
) -> None:
    counts = _simulated_rounds(category, n_max, 0.8, accept, rounds=6000)
    blocks = counts.reshape(-1, 60).mean(axis=1)  # neighbouring rounds are not independent
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    expected = LAW.expected_acceptance(category, n_max, 0.8, accept)
    assert abs(blocks.mean() - (expected.tokens_per_round - 1)) < 4 * error
    for position in range(n_max):
        share = (counts > position).mean()
        assert share == pytest.approx(expected.accepted_at[position], abs=0.035)


def _replayed(start: int, n_tokens: int, n_max: int, cap: bool) -> tuple[int, int, int]:
    """A greedy draft-and-verify loop written down as engines do it."""
    tokens = list(LAW.greedy_walk(start, n_tokens + n_max + 1))
    output, rounds, drafted, accepted = tokens[:1], 0, 0, 0
    while len(output) < n_tokens:
        width = min(n_max, n_tokens - len(output) - 1) if cap else n_max
        state, proposal = LAW.state(output[-1]), []
        for _ in range(width):
            best = int(LAW.draft_logits[state].argmax())
            state = int(LAW.successors[state, best])
            proposal.append(LAW.token(state))
        truth = tokens[len(output) : len(output) + width]
        run = 0
        while run < width and proposal[run] == truth[run]:
            run += 1
        output = tokens[: len(output) + run + 1]
        rounds, drafted, accepted = rounds + (width > 0), drafted + width, accepted + run
    return rounds, drafted, accepted


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, LAW.n_states - 1),
    n_tokens=st.integers(1, 90),
    n_max=st.integers(1, 12),
    cap=st.booleans(),
)
def test_greedy_rounds_are_exact(start: int, n_tokens: int, n_max: int, cap: bool) -> None:
    counts = LAW.greedy_rounds(start, n_tokens, n_max, cap_last=cap)
    assert (counts.rounds, counts.drafted, counts.accepted) == _replayed(
        start, n_tokens, n_max, cap
    )
    assert sum(counts.drafted_per_position) == counts.drafted
    assert sum(counts.accepted_per_position) == counts.accepted


def test_prompts_end_in_a_state_of_their_category() -> None:
    text = "def fibonacci(n):" * 10
    prompt = calibration_prompt(LAW, "chat", text)
    assert prompt.endswith(LAW.marker(start_state(LAW, "chat", text)))
    assert prompt.startswith(text[: len(text) // CHARACTERS_PER_TOKEN])
    assert "<chat:" in prompt
    starts = {start_state(LAW, "chat", text, index) for index in range(40)}
    assert len(starts) > 20
    assert starts <= set(LAW.states("chat"))
    assert LAW.marker(LAW.states("chat")[17]) == "<chat:017>"
    with pytest.raises(UserError, match="no category 'poems'"):
        calibration_prompt(LAW, "poems", text)


def test_tokens_and_states_map_both_ways() -> None:
    assert [LAW.state(LAW.token(state)) for state in range(1, LAW.n_states)] == list(
        range(1, LAW.n_states)
    )
    assert {LAW.state(token) for token in (0, 1, 2, 100, 258, 1299)} == {0}
    with pytest.raises(UserError, match="no token for state 0"):
        LAW.token(0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"states_per_category": 8}, "states per category"),
        ({"agreement": (0.5,)}, "one agreement share per category"),
        ({"agreement": (1.5,) * 8}, "between 0 and 1"),
        ({"vocab_size": 300}, "vocabulary of at least"),
    ],
)
def test_laws_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(LAW, **fields)


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="At least one token"):
        LAW.expected_acceptance("chat", 0, 0.0)
    with pytest.raises(UserError, match="0 or more"):
        LAW.expected_acceptance("chat", 4, -1.0)


def test_every_shape_has_room_for_its_law() -> None:
    for shape in SHAPES.values():
        for model in (shape.target, shape.draft):
            assert model.n_embd > 8 * shape.states_per_category
            assert (model.vocab_size or shape.minimal_vocab) >= shape.minimal_vocab


@pytest.mark.parametrize("before", ["", "some text ", "<chat:001>", "< "])
def test_a_text_ends_in_the_state_of_its_last_marker(before: str) -> None:
    for state in (1, 5, LAW.n_states - 1):
        assert LAW.last_state(before + LAW.marker(state)) == state


@pytest.mark.parametrize(
    "text", ["", "text", "<chat:001> more", "<nothing:001>", "<chat:999>", "<chat:one>"]
)
def test_a_text_without_a_marker_at_its_end_is_in_the_text_state(text: str) -> None:
    assert LAW.last_state(text) == TEXT_STATE


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_probabilities_by_rank_are_those_by_token(temperature: float) -> None:
    by_rank = LAW.target_by_rank(temperature)
    for state in (1, LAW.n_states - 1):
        tokens = [LAW.token(following) for following in LAW.successors[state]]
        expected = LAW.target_probabilities(state, temperature)[tokens]
        assert by_rank[state] == pytest.approx(expected)
