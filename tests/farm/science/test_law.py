"""The check of a law: uniform where the law holds, and telling where it nearly does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from farm.science.law import ALARM, LEAST_EXPECTED, law_p_value

TOKENS = 400
CELLS = 6


def softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def laws_of(rng: np.random.Generator, tokens: int, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return laws that differ from token to token, sorted by rank: (tokens, cells)."""
    logits = -np.sort(rng.exponential(1.0, (tokens, CELLS)), axis=1)
    return softmax(logits, temperature)


def drawn(rng: np.random.Generator, laws: NDArray[np.float64]) -> NDArray[np.int64]:
    points = rng.random((len(laws), 1))
    return np.minimum((laws.cumsum(axis=1) < points).sum(axis=1), laws.shape[1] - 1)


def test_p_values_of_true_draws_are_uniform() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(1000):
        laws = laws_of(rng, TOKENS)
        found.append(law_p_value(drawn(rng, laws), laws))

    # Two in a thousand seeds would fail this.
    assert stats.kstest(found, "uniform").pvalue > 0.002


def test_p_values_of_a_chain_are_uniform() -> None:
    """The next law depends on the token drawn before, as in a text."""
    rng = np.random.default_rng(3)
    by_state = laws_of(rng, CELLS)
    up_to = by_state.cumsum(axis=1)
    found = []
    for _ in range(1000):
        states = [0]
        for point in rng.random(TOKENS):
            following = int(np.searchsorted(up_to[states[-1]], point))
            states.append(min(following, CELLS - 1))
        found.append(law_p_value(states[1:], by_state[states[:-1]]))

    assert stats.kstest(found, "uniform").pvalue > 0.002


def test_equal_laws_give_pearsons_chi_square() -> None:
    law = np.array([0.5, 0.3, 0.2])
    counts = np.array([90, 70, 40])
    cells = np.repeat(np.arange(3), counts)

    expected = stats.chisquare(counts, law * counts.sum()).pvalue

    assert law_p_value(cells, np.tile(law, (200, 1))) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [0.9, 1.1])
def test_a_slightly_wrong_temperature_is_found_with_enough_tokens(wrong: float) -> None:
    rng = np.random.default_rng(4)
    logits = -np.sort(rng.exponential(1.0, (40_000, CELLS)), axis=1)
    cells = drawn(rng, softmax(logits, wrong))

    p_value = law_p_value(cells, softmax(logits, 1.0))

    assert p_value is not None
    assert p_value < ALARM


def test_a_token_without_any_chance_decides() -> None:
    law = np.array([0.6, 0.4, 0.0])
    cells = [0] * 60 + [1] * 39 + [2]

    assert law_p_value(cells, np.tile(law, (100, 1))) == 0.0


def test_rare_cells_are_counted_together() -> None:
    law = np.array([0.7, 0.2, 0.05, 0.03, 0.02])
    cells = np.repeat(np.arange(5), [140, 40, 10, 6, 4])
    together = np.minimum(cells, 2)

    pooled = law_p_value(together, np.tile([0.7, 0.2, 0.1], (200, 1)))

    assert law_p_value(cells, np.tile(law, (200, 1))) == pooled == 1.0


@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_too_few_tokens_say_nothing(tokens: int) -> None:
    assert 0.3 * tokens < LEAST_EXPECTED

    assert law_p_value([0] * tokens, np.tile([0.7, 0.3], (tokens, 1))) is None


def test_a_correct_decoder_is_hardly_ever_alarmed() -> None:
    """Summed over every count that two cells can have, where the rarer just counts."""
    for share in (0.02, 0.1, 0.3, 0.5):
        tokens = int(np.ceil(LEAST_EXPECTED / share)) + 1
        laws = np.tile([1 - share, share], (tokens, 1))
        p_values = [law_p_value(np.arange(tokens) < count, laws) for count in range(tokens + 1)]
        alarmed = [count for count, p_value in enumerate(p_values) if (p_value or 0.0) < ALARM]

        assert None not in p_values
        assert stats.binom.pmf(alarmed, tokens, share).sum() < 1.1e-5
