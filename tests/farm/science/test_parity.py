from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.domain.measurement import Parity
from farm.science.parity import NEAR_TIE_LOGITS, Cause, classify, explain, first_divergence

tokens = st.lists(st.integers(0, 5), max_size=12)


class TestFirstDivergence:
    @pytest.mark.parametrize(
        ("baseline", "speculative", "index"),
        [
            ([], [], None),
            ([1, 2, 3], [1, 2, 3], None),
            ([1, 2, 3], [9, 2, 3], 0),
            ([1, 2, 3], [1, 2, 9], 2),
            ([1, 2, 3], [1, 9, 8], 1),
            ([1, 2, 3], [1, 2], 2),
            ([1, 2], [1, 2, 3], 2),
            ([], [1], 0),
            ([1, 2, 3], [1, 9], 1),
        ],
    )
    def test_known_answers(
        self, baseline: list[int], speculative: list[int], index: int | None
    ) -> None:
        assert first_divergence(baseline, speculative) == index

    @given(tokens)
    def test_a_sequence_equals_itself(self, ids: list[int]) -> None:
        assert first_divergence(ids, list(ids)) is None

    @given(tokens, tokens)
    def test_the_arms_can_be_swapped(self, left: list[int], right: list[int]) -> None:
        assert first_divergence(left, right) == first_divergence(right, left)

    @given(tokens, tokens)
    def test_everything_before_it_is_equal_and_it_is_not(
        self, left: list[int], right: list[int]
    ) -> None:
        index = first_divergence(left, right)

        if index is None:
            assert left == right
        else:
            assert left[:index] == right[:index]
            assert left[index : index + 1] != right[index : index + 1]

    @given(tokens, tokens, tokens)
    def test_an_equal_beginning_moves_it_by_its_length(
        self, shared: list[int], left: list[int], right: list[int]
    ) -> None:
        index = first_divergence(left, right)

        assert first_divergence(shared + left, shared + right) == (
            None if index is None else index + len(shared)
        )


class TestClassify:
    @pytest.mark.parametrize(
        ("divergence", "margin", "finding"),
        [
            (None, None, Parity.EXACT),
            (0, 0.0, Parity.NEAR_TIE),
            (5, NEAR_TIE_LOGITS / 2, Parity.NEAR_TIE),
            (5, NEAR_TIE_LOGITS, Parity.MISMATCH),
            (0, 7.5, Parity.MISMATCH),
            (5, None, Parity.MISMATCH),
        ],
    )
    def test_known_answers(
        self, divergence: int | None, margin: float | None, finding: Parity
    ) -> None:
        assert classify(divergence, margin) is finding

    @given(st.integers(0, 1000), st.floats(min_value=NEAR_TIE_LOGITS))
    def test_a_clear_margin_excuses_nothing(self, divergence: int, margin: float) -> None:
        assert classify(divergence, margin) is Parity.MISMATCH

    def test_a_margin_that_is_no_number_excuses_nothing(self) -> None:
        assert classify(3, float("nan")) is Parity.MISMATCH


class TestExplain:
    @pytest.mark.parametrize(
        ("emitted", "control", "cause"),
        [
            (7, 7, Cause.ARITHMETIC),
            (0, 0, Cause.ARITHMETIC),
            (7, 8, Cause.UNEXPLAINED),
            # The text had ended where the control goes on.
            (None, 8, Cause.UNEXPLAINED),
            (7, None, Cause.UNKNOWN),
            (None, None, Cause.UNKNOWN),
        ],
    )
    def test_known_answers(self, emitted: int | None, control: int | None, cause: Cause) -> None:
        assert explain(emitted, control) is cause
