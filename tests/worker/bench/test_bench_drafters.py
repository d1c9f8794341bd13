"""Drafters: what they propose, and that their caches hold what stands and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from goodness_of_fit import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.bench.drafters import ModelDrafter, PromptLookup
from worker.bench.sampling import Exact, Greedy, Logits, Match, top_share

VOCAB = 6


class FakeContext:
    """A model whose logits after a token are a table's row; it records what it was fed."""

    def __init__(self, table: Logits) -> None:
        self._table = table
        self.vocab_tokens = table.shape[1]
        self.cached: list[int] = []
        self.passes: list[list[int]] = []

    @property
    def length(self) -> int:
        """Return the number of cached tokens."""
        return len(self.cached)

    def clear(self) -> None:
        """Forget everything."""
        self.cached.clear()

    def roll_back(self, length: int) -> None:
        """Drop the tokens from `length` on."""
        del self.cached[length:]

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; return the last one's logits."""
        return self.decode(tokens)[-1]

    def step(self, token: int) -> Logits:
        return self.decode([token])[0]

    def decode(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; return each one's logits."""
        assert tokens, "llama.cpp refuses an empty batch"
        self.passes.append(list(tokens))
        self.cached.extend(tokens)
        return self._table[list(tokens)]


def table_of(successors: Sequence[int], lead: Sequence[float] | None = None) -> Logits:
    """Return logits by which token t is followed by successors[t], ahead by lead[t]."""
    logits = np.zeros((len(successors), VOCAB), np.float32)
    logits[np.arange(len(successors)), successors] = lead if lead is not None else 5.0
    return logits


CYCLE = table_of([1, 2, 3, 4, 5, 0])


def model_drafter(table: Logits, p_min: float = 0.0, n_min: int = 0, rule: Greedy | None = None):
    context = FakeContext(table)
    drafter = ModelDrafter(context, rule or Greedy(), VOCAB, p_min, n_min)  # type: ignore[arg-type]
    return drafter, context


def test_the_prompts_last_token_is_left_to_the_first_proposal():
    drafter, context = model_drafter(CYCLE)

    drafter.begin([4, 4, 0])
    assert context.cached == [4, 4]
    # The target drew 1 after the prompt: both tokens the draft has not seen go in at once.
    assert drafter.propose([4, 4, 0, 1], 3).tokens == [2, 3, 4]
    assert context.passes == [[4, 4], [0, 1], [2], [3]]


def test_a_prompt_of_one_token_needs_no_pass():
    drafter, context = model_drafter(CYCLE)

    drafter.begin([0])

    assert context.passes == []
    assert drafter.propose([0, 1], 2).tokens == [2, 3]
    assert context.passes == [[0, 1], [2]]


def test_begin_forgets_the_sequence_before():
    drafter, context = model_drafter(CYCLE)
    drafter.begin([1, 2, 3])
    drafter.propose([1, 2, 3, 4], 4)

    drafter.begin([5, 5])

    assert context.cached == [5]


def test_after_full_acceptance_the_last_drafted_token_is_fed_with_the_bonus_token():
    drafter, context = model_drafter(CYCLE)
    drafter.begin([0, 0])
    drafter.propose([0, 0, 1], 2)
    drafter.keep(5)
    context.passes.clear()

    drafter.propose([0, 0, 1, 2, 3, 4], 1)

    assert context.passes == [[3, 4]]


def test_after_rejection_only_the_targets_token_is_fed():
    drafter, context = model_drafter(CYCLE)
    drafter.begin([0, 0])
    drafter.propose([0, 0, 1], 3)
    drafter.keep(3)
    context.passes.clear()

    drafter.propose([0, 0, 1, 5], 1)

    assert context.passes == [[5]]


@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, VOCAB - 1)), max_size=12
    ),
)
@settings(max_examples=120, deadline=None)
def test_the_cache_is_always_a_prefix_of_what_stands(
    prompt: list[int], rounds: list[tuple[int, int, int]]
):
    drafter, context = model_drafter(CYCLE)
    drafter.begin(prompt)
    tokens = [*prompt, 0]
    for n_max, accepted, own in rounds:
        context.passes.clear()
        missing = tokens[context.length :]
        proposal = drafter.propose(tokens, n_max)
        if n_max:
            assert context.passes == [missing, *([token] for token in proposal.tokens[:-1])]
            assert context.cached == [*tokens, *proposal.tokens[:-1]]
        tokens += [*proposal.tokens[:accepted], own]
        drafter.keep(len(tokens) - 1)
        assert context.cached == tokens[: context.length]


def test_no_room_drafts_nothing_and_feeds_nothing():
    drafter, context = model_drafter(CYCLE)
    drafter.begin([0, 0])
    context.passes.clear()

    assert drafter.propose([0, 0, 1], 0).tokens == []
    assert context.passes == []


def test_drafting_stops_before_the_token_that_the_draft_is_unsure_of():
    # After 2 the best token leads by too little; one of six equals a share of 1/6.
    drafter, _ = model_drafter(table_of([1, 2, 3, 4, 5, 0], [5, 5, 0.1, 5, 5, 5]), p_min=0.5)
    drafter.begin([0])

    proposal = drafter.propose([0, 0], 5)

    assert proposal.tokens == [1, 2]
    assert proposal.laws == [None, None]


def test_a_share_equal_to_p_min_goes_on():
    table = table_of([1] * VOCAB, [0.7] * VOCAB)
    share = top_share(table[0])

    for p_min, drafted in ((share, 3), (float(np.nextafter(share, 1)), 0)):
        drafter, _ = model_drafter(table, p_min=p_min)
        drafter.begin([0])
        assert len(drafter.propose([0, 0], 3).tokens) == drafted


class DrawsTheWorst(Exact):
    """Draws the least likely token, with the law that an honest draw has."""

    def propose(self, logits: Logits):
        """Return the worst token."""
        _, law = super().propose(logits)
        return int(logits.argmin()), law


def test_p_min_judges_the_best_token_and_never_the_drawn_one():
    table = np.tile(np.array([5, 0, 0, 0, 0, -9], np.float32), (VOCAB, 1))
    drafter, _ = model_drafter(table, p_min=0.9, rule=DrawsTheWorst(1.0, np.random.default_rng(0)))
    drafter.begin([0])

    proposal = drafter.propose([0, 0], 3)

    assert proposal.tokens == [5, 5, 5]
    assert all(law is not None and law[5] < 1e-5 for law in proposal.laws)


def test_the_match_rule_drafts_the_best_token_at_any_temperature():
    drafter, _ = model_drafter(CYCLE, rule=Match(5.0, np.random.default_rng(0)))
    drafter.begin([0])

    proposal = drafter.propose([0, 0], 4)

    assert proposal.tokens == [1, 2, 3, 4]
    assert proposal.laws == [None] * 4


def test_fewer_greedy_tokens_than_n_min_count_as_none():
    unsure_after_two = table_of([1, 2, 3, 4, 5, 0], [5, 5, 0.1, 5, 5, 5])

    for n_min, expected in ((2, [1, 2]), (3, [])):
        drafter, context = model_drafter(unsure_after_two, p_min=0.5, n_min=n_min)
        drafter.begin([0])
        proposal = drafter.propose([0, 0], 5)
        assert proposal.tokens == expected
        assert len(proposal.laws) == len(proposal.tokens)
        drafter.keep(2)
        assert context.cached == [0, 0]


def test_too_little_room_for_n_min_drafts_nothing():
    for rule in (Greedy(), Exact(1.0, np.random.default_rng(0))):
        drafter, context = model_drafter(CYCLE, n_min=3, rule=rule)
        drafter.begin([0])
        assert drafter.propose([0, 0], 2).tokens == []
        assert context.passes == []


def test_n_min_does_not_bend_the_law_of_drawn_drafts():
    # The draft is sure after the prompt (token 5) and after 0, and unsure after 1. Throwing [1]
    # away and keeping [0, 0] would emit 0 in 60 % of the rounds. Significance: ALARM.
    never = -np.inf
    table = np.full((VOCAB, VOCAB), never, np.float32)
    table[5, :2] = np.log([0.81, 0.19])
    table[0, :2] = [9.0, 0.0]
    table[1, :2] = 0.0
    target = np.full((3, VOCAB), never, np.float32)
    target[:, :2] = 0.0
    verifier = Exact(1.0, np.random.default_rng(3))
    drafter, _ = model_drafter(table, p_min=0.8, n_min=2, rule=Exact(1.0, np.random.default_rng(4)))
    counts = [0, 0]
    for _ in range(3_000):
        drafter.begin([5])
        proposal = drafter.propose([5, 5], 2)
        logits = target[: len(proposal.tokens) + 1]
        verdict = verifier.verify(logits, proposal.tokens, proposal.laws)
        counts[proposal.tokens[0] if verdict.accepted else verdict.token] += 1

    assert fits(counts, [0.5, 0.5])


def test_a_draft_with_more_tokens_than_the_target_proposes_only_known_ones():
    table = np.zeros((VOCAB + 2, VOCAB + 2), np.float32)
    table[:, VOCAB + 1] = 9.0
    table[:, 3] = 5.0
    for rule in (Greedy(), Exact(0.1, np.random.default_rng(0))):
        drafter, _ = model_drafter(table, rule=rule)
        drafter.begin([0])
        proposal = drafter.propose([0, 0], 2)
        assert proposal.tokens == [3, 3]
        assert all(
            law is None or (len(law) == VOCAB and law.sum() == pytest.approx(1))
            for law in proposal.laws
        )


def brute_force(tokens: list[int], n_max: int, n_min: int) -> list[int]:
    """Return what follows the latest earlier occurrence of the longest suffix, by search."""
    for size in (3, 2, 1):
        suffix = tokens[-size:]
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) > size and tokens[end - size : end] == suffix:
                found = tokens[end : end + n_max]
                if len(found) >= max(n_min, 1):
                    return found
                break
    return []


def test_lookup_takes_the_longest_suffix_over_a_later_shorter_one():
    # [7, 8] is followed by 1 early and [8] alone by 2 later.
    assert PromptLookup(0).propose([7, 8, 1, 9, 8, 2, 7, 8], 2).tokens == [1, 9]


def test_lookup_takes_the_latest_occurrence():
    assert PromptLookup(0).propose([5, 1, 5, 2, 5], 1).tokens == [2]


def test_lookup_finds_nothing_in_new_text():
    for tokens in ([3], [1, 2, 3, 4]):
        assert PromptLookup(0).propose(tokens, 4).tokens == []


def test_lookup_proposals_are_certain():
    assert PromptLookup(0).propose([1, 2, 1], 4).laws == [None, None]


def test_lookup_with_a_continuation_shorter_than_n_min_proposes_nothing():
    assert PromptLookup(3).propose([1, 2, 1], 4).tokens == []
    assert PromptLookup(2).propose([1, 2, 1], 4).tokens == [2, 1]


def test_lookup_without_room_proposes_nothing():
    assert PromptLookup(0).propose([1, 2, 1], 0).tokens == []


def test_lookup_forgets_the_sequence_before():
    drafter = PromptLookup(0)
    drafter.propose([1, 2, 3, 1], 2)

    drafter.begin([1])

    assert drafter.propose([9, 1], 2).tokens == []


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=15),
    st.integers(1, 5),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_the_growing_index_finds_what_a_search_finds(
    pieces: list[list[int]], n_max: int, n_min: int
):
    drafter = PromptLookup(n_min)
    tokens: list[int] = []
    drafter.begin([])
    for piece in pieces:
        tokens.extend(piece)
        assert drafter.propose(tokens, n_max).tokens == brute_force(tokens, n_max, n_min)
        drafter.keep(len(tokens))


def test_a_token_the_smaller_draft_does_not_know_is_fed_as_one_it_does():
    """llama.cpp allows vocabularies to differ by 128 and refuses to read an unknown token."""
    context = FakeContext(table_of([1, 2, 3, 0])[:, :4])
    drafter = ModelDrafter(context, Greedy(), VOCAB, 0.0, 0)  # type: ignore[arg-type]

    drafter.begin([0, VOCAB - 1, 1])
    assert context.cached == [0, 3]
    assert drafter.propose([0, VOCAB - 1, 1], 2).tokens == [2, 3]
