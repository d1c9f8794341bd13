"""Above temperature 0 on real llama.cpp, against a law that is known exactly.

Two kinds of check, all with fixed seeds. Goodness of fit: the rank of each emitted token among
its state's eight candidates, with the states split by whether the draft agrees there; chi-square
at significance 1e-6 (goodness_of_fit.ALARM). Acceptance: within Z = 5 standard deviations, one
false alarm in 1.7 million. With other seeds a correct decoder would fail this file with a
probability below 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from broken_rules import BROKEN_RULES
from goodness_of_fit import ALARM, p_value_in_strata
from loaded_pair import LoadedPair

from farm.domain.decoding import AcceptRule
from farm.gguf.calibration import Law
from worker.bench.decode import Run, baseline, speculative
from worker.bench.drafters import Drafter, ModelDrafter, PromptLookup
from worker.bench.sampling import Exact, Greedy, Verdict, rule

Z = 5.0
N_MAX = 3
TOKENS = 300
CATEGORIES = ("code-completion", "chat", "creative-prose")
STARTS_PER_CATEGORY = 2
RULES = [(temperature, accept) for temperature in (0.7, 1.0) for accept in AcceptRule]


@dataclass(frozen=True)
class Round:
    """A round: the state it began in, what was drafted there and how much of it was kept."""

    state: int
    drafted: tuple[int, ...]
    accepted: int


@dataclass
class Outcome:
    """What several runs emitted, as sequences of states, and their rounds by category."""

    walks: list[list[int]] = field(default_factory=list)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)


def never(_token: int) -> bool:
    return False


class Recorder:
    """A drafter and a rule at once, which pass everything on and note each round's state."""

    def __init__(self, drafter: Drafter, judge: Greedy, law: Law) -> None:
        self._drafter = drafter
        self._judge = judge
        self._law = law
        self._state = 0
        self.rounds: list[Round] = []
        self.begin = drafter.begin
        self.keep = drafter.keep
        self.pick = judge.pick

    def propose(self, tokens: list[int], n_max: int):
        """Note the last token's state."""
        self._state = self._law.state(tokens[-1])
        return self._drafter.propose(tokens, n_max)

    def verify(self, logits, drafted, laws) -> Verdict:
        """Note the verdict."""
        verdict = self._judge.verify(logits, drafted, laws)
        states = tuple(self._law.state(token) for token in drafted)
        self.rounds.append(Round(self._state, states, verdict.accepted))
        return verdict


def start_tokens(law: Law, category: str) -> list[int]:
    states = law.states(category)
    return [law.token(states[index * 13]) for index in range(STARTS_PER_CATEGORY)]


def run_all(
    pair: LoadedPair,
    law: Law,
    temperature: float,
    accept: str,
    *,
    speculate: bool,
    lookup: bool = False,
    n_min: int = 0,
    p_min: float = 0.0,
    tokens: int = TOKENS,
    seed: int = 0,
) -> Outcome:
    """Run every category from its start states; the outcome's walks begin with the start."""
    outcome = Outcome()
    for category in CATEGORIES:
        rounds: list[Round] = []
        runs: list[Run] = []
        for start in start_tokens(law, category):
            judge = rule(temperature, accept, np.random.default_rng([seed, start, 0]))
            if not speculate:
                run = baseline(pair.target, judge, [start], tokens, never)
            else:
                own = rule(temperature, accept, np.random.default_rng([seed, start, 1]))
                drafter: Drafter = (
                    PromptLookup(n_min)
                    if lookup
                    else ModelDrafter(pair.draft, own, law.vocab_size, p_min, n_min)
                )
                recorder = Recorder(drafter, judge, law)
                run = speculative(pair.target, recorder, recorder, [start], tokens, N_MAX, never)  # type: ignore[arg-type]
                rounds += recorder.rounds
            runs.append(run)
            outcome.walks.append([law.state(token) for token in (start, *run.output_ids)])
        outcome.rounds[category] = rounds
        outcome.runs[category] = runs
    return outcome


def chance_of(walks: list[list[int]], law: Law, temperature: float) -> float:
    """Return the goodness of fit of emitted tokens given the state before each."""
    counts = {True: np.zeros(9), False: np.zeros(9)}
    for walk in walks:
        for state, following in pairwise(walk):
            ranks = np.flatnonzero(law.successors[state] == following)
            counts[bool(law.agrees[state])][ranks[0] if len(ranks) else 8] += 1
    some = next(iter(law.states("chat")))
    probabilities = law.target_probabilities(some, temperature)
    by_rank = probabilities[[law.token(state) for state in law.successors[some]]]
    expected = np.append(by_rank, 0.0)
    return p_value_in_strata(list(counts.values()), [expected, expected])


@pytest.fixture(scope="module")
def outcome_of(loaded: LoadedPair, law: Law):
    """Return outcomes by (temperature, accept rule), each made once."""

    @cache
    def make(temperature: float, accept: str) -> Outcome:
        return run_all(loaded, law, temperature, accept, speculate=True)

    return make


def test_the_target_has_one_law_for_all_states_by_rank(law: Law):
    by_rank = [
        law.target_probabilities(state, 0.7)[[law.token(s) for s in law.successors[state]]]
        for category in CATEGORIES
        for state in law.states(category)
    ]

    assert np.ptp(by_rank, axis=0).max() == 0.0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_baseline_follows_the_law(loaded: LoadedPair, law: Law, temperature: float):
    outcome = run_all(loaded, law, temperature, "exact", speculate=False)

    assert chance_of(outcome.walks, law, temperature) >= ALARM


@pytest.mark.parametrize(("temperature", "accept"), RULES)
def test_the_speculative_output_follows_the_same_law(
    outcome_of, law: Law, temperature: float, accept: AcceptRule
):
    assert chance_of(outcome_of(temperature, accept).walks, law, temperature) >= ALARM


@pytest.mark.parametrize(("temperature", "accept"), RULES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_acceptance_is_the_laws_own_state_by_state(
    outcome_of, law: Law, temperature: float, accept: AcceptRule, category: str
):
    """Given where a position starts, its acceptance has a known chance, whatever came before:
    so the differences are a martingale and their spread is exact, though rounds are dependent."""
    for position in range(2):
        surplus, variance, tries = 0.0, 0.0, 0
        for one in outcome_of(temperature, accept).rounds[category]:
            if len(one.drafted) <= position or one.accepted < position:
                continue
            state = (one.state, *one.drafted)[position]
            chance = law_acceptance(law, state, temperature, accept)
            surplus += (one.accepted > position) - chance
            variance += chance * (1 - chance)
            tries += 1
        assert tries > 40
        assert abs(surplus) <= Z * math.sqrt(variance)


@pytest.mark.parametrize(("temperature", "accept"), RULES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_acceptance_per_position_is_the_long_runs_expectation(
    outcome_of, law: Law, temperature: float, accept: AcceptRule, category: str
):
    """Position 1 per round that drafted it, position 2 per round that accepted position 1 and
    drafted a second; binomial intervals of Z, in units of one outcome per round."""
    expected = law.expected_acceptance(category, N_MAX, temperature, accept)
    runs = outcome_of(temperature, accept).runs[category]
    drafted = np.sum([run.drafted_per_position for run in runs], axis=0)
    accepted = np.sum([run.accepted_per_position for run in runs], axis=0)
    second_tries = sum(
        one.accepted >= 1 and len(one.drafted) >= 2
        for one in outcome_of(temperature, accept).rounds[category]
    )

    first, second = expected.accepted_at[0], expected.accepted_at[1] / expected.accepted_at[0]
    for chance, tries, kept in (
        (first, drafted[0], accepted[0]),
        (second, second_tries, accepted[1]),
    ):
        assert abs(kept - chance * tries) <= Z * math.sqrt(chance * (1 - chance) * tries)
    # The rate sums up to N_MAX dependent outcomes per round: no wider than if all were equal.
    rate = accepted.sum() / drafted.sum()
    spread = math.sqrt(expected.rate * (1 - expected.rate) / drafted[0])
    assert abs(rate - expected.rate) <= Z * spread


def law_acceptance(law: Law, state: int, temperature: float, accept: AcceptRule) -> float:
    """Return the chance that a token drafted after a state is accepted."""
    p = law.target_probabilities(state, temperature)
    q = law.draft_probabilities(state, temperature)
    if accept is AcceptRule.MATCH:
        return float(p[q.argmax()])
    return float(np.minimum(p, q).sum())


def test_the_exact_rule_accepts_more_than_the_match_rule(outcome_of):
    for category in CATEGORIES:
        exact, match = (
            sum(run.accepted for run in outcome_of(1.0, accept).runs[category])
            / sum(run.drafted for run in outcome_of(1.0, accept).runs[category])
            for accept in (AcceptRule.EXACT, AcceptRule.MATCH)
        )
        assert exact > match


@pytest.mark.parametrize("broken", BROKEN_RULES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_broken_rule_in_the_same_loop_is_found_out(
    loaded: LoadedPair,
    law: Law,
    monkeypatch: pytest.MonkeyPatch,
    broken: type[Exact],
    temperature: float,
):
    monkeypatch.setattr(Exact, "verify", broken.verify)

    outcome = run_all(loaded, law, temperature, "exact", speculate=True)

    assert chance_of(outcome.walks, law, temperature) < ALARM


@pytest.mark.parametrize("accept", AcceptRule)
@pytest.mark.parametrize("n_min", [0, 2, 3])
def test_stopping_early_keeps_the_law(loaded: LoadedPair, law: Law, accept: AcceptRule, n_min: int):
    # Between the draft's shares of 0.51 to 0.71 it is sure of some states and unsure of others.
    outcome = run_all(loaded, law, 1.0, accept, speculate=True, n_min=n_min, p_min=0.6)

    lengths = {len(one.drafted) for rounds in outcome.rounds.values() for one in rounds}
    assert {0, N_MAX} <= lengths
    assert chance_of(outcome.walks, law, 1.0) >= ALARM


@pytest.mark.parametrize("accept", AcceptRule)
def test_prompt_lookup_keeps_the_law(loaded: LoadedPair, law: Law, accept: AcceptRule):
    outcome = run_all(loaded, law, 0.7, accept, speculate=True, lookup=True)

    assert sum(run.accepted for runs in outcome.runs.values() for run in runs) > 200
    assert chance_of(outcome.walks, law, 0.7) >= ALARM
