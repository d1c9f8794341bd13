"""The accept rules on laws written down by hand.

Every goodness-of-fit check has significance 1e-6 (goodness_of_fit.ALARM) and a fixed seed: with
another seed a correct rule would fail this file with a probability below 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from broken_rules import BROKEN_RULES
from goodness_of_fit import ALARM, fits, p_value
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.bench.sampling import (
    BLOCK_TOKENS,
    UNDIVIDED_TOKENS,
    Exact,
    Greedy,
    Match,
    Verdict,
    draw,
    rule,
    softmax,
    top_share,
)

ROUNDS = 4_000
Z = 5.0
"""Acceptance lies within this many standard deviations: a false alarm in 1.7 million seeds."""


@dataclass(frozen=True)
class Case:
    """A target's law p and a draft's law q; None is a certain draft of `certain`."""

    p: tuple[float, ...]
    q: tuple[float, ...] | None
    certain: int = 0

    @property
    def shared(self) -> int:
        """Return how many tokens both vocabularies have."""
        return min(len(self.p), len(self.q)) if self.q else len(self.p)

    @property
    def exact_acceptance(self) -> float:
        """Return sum min(p, q)."""
        if self.q is None:
            return self.p[self.certain]
        return sum(min(left, right) for left, right in zip(self.p, self.q, strict=False))


CASES = {
    "q differs": Case((0.1, 0.2, 0.3, 0.25, 0.15), (0.3, 0.1, 0.1, 0.1, 0.4)),
    "q equals p": Case((0.4, 0.3, 0.2, 0.1), (0.4, 0.3, 0.2, 0.1)),
    "disjoint supports": Case((0.0, 0.0, 0.7, 0.3), (0.6, 0.4, 0.0, 0.0)),
    "one-hot q, likely": Case((0.6, 0.25, 0.1, 0.05), None, certain=0),
    "one-hot q, unlikely": Case((0.6, 0.25, 0.1, 0.05), None, certain=3),
    "one-hot q, impossible": Case((0.5, 0.5, 0.0), None, certain=2),
    "draft knows fewer tokens": Case((0.2, 0.2, 0.2, 0.2, 0.2), (0.7, 0.2, 0.1)),
    "p is certain": Case((0.0, 1.0, 0.0), (0.4, 0.3, 0.3)),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def logits_of(law: tuple[float, ...] | NDArray[np.float64], temperature: float = 1.0):
    with np.errstate(divide="ignore"):
        return (np.log(np.asarray(law)) * temperature).astype(np.float32)


def one_round(verifier: Exact, drafter: Exact, case: Case, temperature: float) -> Verdict:
    logits = np.stack([logits_of(case.p, temperature), logits_of(case.p, temperature)])
    if case.q is None:
        token, law = case.certain, None
    else:
        token, law = drafter.propose(logits_of(case.q, temperature))
    verdict = verifier.verify(logits, [token], [law])
    return Verdict(verdict.accepted, token if verdict.accepted else verdict.token)


def emitted(kind: type[Exact], case: Case, temperature: float, seed: int) -> tuple[list[int], int]:
    """Return how often each token was emitted first, and how many drafts were accepted."""
    verifier = kind(temperature, np.random.default_rng([seed, 0]))
    drafter = kind(temperature, np.random.default_rng([seed, 1]))
    counts, accepted = [0] * len(case.p), 0
    for _ in range(ROUNDS):
        verdict = one_round(verifier, drafter, case, temperature)
        counts[verdict.token] += 1
        accepted += verdict.accepted
    return counts, accepted


@all_cases
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_exact_emits_the_targets_law_and_accepts_the_overlap(case: Case, temperature: float):
    counts, accepted = emitted(Exact, case, temperature, seed=11)

    assert fits(counts, case.p)
    share = case.exact_acceptance
    assert abs(accepted - share * ROUNDS) <= Z * np.sqrt(share * (1 - share) * ROUNDS) + 1e-6


@all_cases
def test_match_emits_the_targets_law_and_accepts_with_p_of_the_drafts_best(case: Case):
    counts, accepted = emitted(Match, case, 1.0, seed=12)

    assert fits(counts, case.p)
    best = case.certain if case.q is None else int(np.argmax(case.q))
    share = case.p[best]
    assert abs(accepted - share * ROUNDS) <= Z * np.sqrt(share * (1 - share) * ROUNDS) + 1e-6


@pytest.mark.parametrize("broken", BROKEN_RULES)
@pytest.mark.parametrize("name", ["q differs", "one-hot q, unlikely", "draft knows fewer tokens"])
def test_the_check_refuses_a_broken_rule(broken: type[Exact], name: str):
    counts, _ = emitted(broken, CASES[name], 1.0, seed=13)

    assert p_value(counts, CASES[name].p) < ALARM


# Pairs of tokens: the second one's laws depend on the first.
FIRST_P = np.array([0.5, 0.3, 0.2])
SECOND_P = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
FIRST_Q = np.array([0.2, 0.6, 0.2])
SECOND_Q = np.array([[0.3, 0.3, 0.4], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3]])


def pair_counts(kind: type[Exact], seed: int, rounds: int = 3_000) -> NDArray[np.int64]:
    """Return counts (3, 3) of two tokens from rounds of K=2; a short round is followed by one
    of K=1, as in decoding."""
    verifier = kind(1.0, np.random.default_rng([seed, 0]))
    drafter = kind(1.0, np.random.default_rng([seed, 1]))
    counts = np.zeros((3, 3), np.int64)
    for _ in range(rounds):
        one, first_law = drafter.propose(logits_of(FIRST_Q))
        two, second_law = drafter.propose(logits_of(SECOND_Q[one]))
        logits = np.stack([logits_of(law) for law in (FIRST_P, SECOND_P[one], FIRST_P)])
        verdict = verifier.verify(logits, [one, two], [first_law, second_law])
        tokens = [*[one, two][: verdict.accepted], verdict.token]
        if len(tokens) < 2:
            again, law = drafter.propose(logits_of(SECOND_Q[tokens[0]]))
            logits = np.stack([logits_of(SECOND_P[tokens[0]]), logits_of(FIRST_P)])
            verdict = verifier.verify(logits, [again], [law])
            tokens.append(again if verdict.accepted else verdict.token)
        counts[tokens[0], tokens[1]] += 1
    return counts


@pytest.mark.parametrize("kind", [Exact, Match])
def test_pairs_of_tokens_follow_the_targets_law(kind: type[Exact]):
    law = FIRST_P[:, None] * SECOND_P

    assert fits(pair_counts(kind, seed=14).ravel(), law.ravel())


@pytest.mark.parametrize("broken", BROKEN_RULES)
def test_the_check_on_pairs_refuses_a_broken_rule(broken: type[Exact]):
    law = FIRST_P[:, None] * SECOND_P

    assert p_value(pair_counts(broken, seed=15).ravel(), law.ravel()) < ALARM


def test_a_fully_accepted_round_ends_with_a_token_of_the_target():
    logits = np.stack([logits_of((1.0, 0.0)), logits_of((1.0, 0.0)), logits_of((0.0, 1.0))])
    certain = np.array([1.0, 0.0])

    verdict = Exact(1.0, np.random.default_rng(0)).verify(logits, [0, 0], [certain, certain])

    assert verdict == Verdict(accepted=2, token=1)


def test_nothing_drafted_is_a_draw_from_the_target():
    logits = logits_of((0.0, 1.0, 0.0))[None]

    for chosen in (
        Greedy(),
        Match(1.0, np.random.default_rng(0)),
        Exact(1.0, np.random.default_rng(0)),
    ):
        assert chosen.verify(logits, [], []) == Verdict(accepted=0, token=1)


def test_greedy_keeps_drafted_tokens_up_to_the_first_that_is_not_best():
    best = np.eye(4, dtype=np.float32)[[2, 0, 3, 1]]

    assert Greedy().verify(best, [2, 0, 1], [None] * 3) == Verdict(accepted=2, token=3)
    assert Greedy().verify(best, [2, 0, 3], [None] * 3) == Verdict(accepted=3, token=1)
    assert Greedy().verify(best, [0, 0, 3], [None] * 3) == Verdict(accepted=0, token=2)


def test_ties_go_to_the_first_token_on_every_path():
    tied = np.array([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0]], np.float32)

    assert Greedy().pick(tied[0]) == 1
    assert Greedy().propose(tied[0]) == (1, None)
    assert Greedy().verify(tied, [1], [None]) == Verdict(accepted=1, token=0)


def test_rule_by_name():
    rng = np.random.default_rng(0)

    assert type(rule(0.0, "exact", rng)) is Greedy
    assert type(rule(0.0, "match", rng)) is Greedy
    assert type(rule(0.7, "match", rng)) is Match
    assert type(rule(0.7, "exact", rng)) is Exact


def test_softmax_known_answers():
    even = softmax(np.zeros(4, np.float32), 0.3)
    np.testing.assert_allclose(even, 0.25)
    # ln 8 / 3 at temperature 1/3 is ln 8 at temperature 1.
    steep = softmax(np.array([np.log(8.0) / 3, 0.0], np.float32), 1 / 3)
    np.testing.assert_allclose(steep, [8 / 9, 1 / 9], rtol=1e-6)


def test_softmax_survives_logits_far_apart():
    law = softmax(np.array([-1e30, 88.0, 1e4, -np.inf], np.float32), 0.01)

    np.testing.assert_array_equal(law, [0.0, 0.0, 1.0, 0.0])


def test_top_share_counts_the_ten_best_only():
    assert top_share(np.zeros(4, np.float32)) == pytest.approx(0.25)
    assert top_share(np.zeros(1000, np.float32)) == pytest.approx(0.1)
    logits = np.full(50, -1.0, np.float32)
    logits[17] = 0.0
    assert top_share(logits) == pytest.approx(1 / (1 + 9 * np.exp(-1)))
    assert top_share(np.array([5.0], np.float32)) == 1.0


class FixedRng:
    """A generator whose every draw is one value."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        """Return the value."""
        return self._value


LAST_BELOW_ONE = float(np.nextafter(1.0, 0.0))
masses = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1.0)), min_size=1, max_size=40).filter(
    lambda weights: sum(weights) > 0
)


@given(masses, st.one_of(st.just(0.0), st.just(LAST_BELOW_ONE), st.floats(0, LAST_BELOW_ONE)))
@settings(max_examples=150, deadline=None)
def test_draw_never_gives_a_token_without_mass(weights: list[float], point: float):
    assert weights[draw(np.array(weights), FixedRng(point))] > 0


def test_draw_takes_the_ends_of_the_unit_interval():
    law = np.array([0.0, 0.5, 0.5, 0.0])

    assert draw(law, FixedRng(0.0)) == 1
    assert draw(law, FixedRng(LAST_BELOW_ONE)) == 2


@given(st.one_of(st.just(0.0), st.just(LAST_BELOW_ONE), st.floats(0, LAST_BELOW_ONE)))
@settings(max_examples=150, deadline=None)
def test_a_draw_from_a_large_vocabulary_is_where_the_running_sum_crosses(point: float):
    law = np.random.default_rng(3).gamma(0.05, size=5 * UNDIVIDED_TOKENS + 77).astype(np.float32)
    law[: 2 * BLOCK_TOKENS] = law[-2 * BLOCK_TOKENS :] = 0.0
    running = np.cumsum(law, dtype=np.float64)

    token = draw(law, FixedRng(point))

    assert law[token] > 0
    rounding = 1e-6 * running[-1]
    assert running[token - 1] - rounding <= point * running[-1] <= running[token] + rounding


@given(masses, masses, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_rule_emits_what_the_target_can_not(p: list[float], q: list[float], seed: int):
    target, draft = np.array(p) / sum(p), np.array(q) / sum(q)
    draft = draft[: len(target)]
    if draft.sum() == 0:
        return
    case = Case(tuple(target), tuple(draft / draft.sum()))
    exact = Exact(1.0, np.random.default_rng([seed, 0]))
    drafter = Exact(1.0, np.random.default_rng([seed, 1]))

    assert target[one_round(exact, drafter, case, 1.0).token] > 0
