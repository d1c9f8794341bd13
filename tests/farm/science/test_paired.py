from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.science.paired import MIN_PAIRS, Interval, ratio_interval

# Quantiles of Student's t from printed tables, two-sided.
T_95_DF2 = 4.30265
T_95_DF3 = 3.18245
T_99_DF3 = 5.84091
T_9875_DF3 = 5.392  # 95 % shared by four comparisons: 1 - 0.05 / 4

log_ratios = st.lists(st.floats(-2, 2), min_size=MIN_PAIRS, max_size=30)


def test_known_answer_of_three_pairs() -> None:
    # ln ratios 0, 0.1, 0.2: mean 0.1, standard deviation 0.1, standard error 0.1 / sqrt(3).
    found = ratio_interval([0.0, 0.1, 0.2])

    half = T_95_DF2 * 0.1 / math.sqrt(3)
    assert found is not None
    assert found.estimate == pytest.approx(math.exp(0.1))
    assert found.low == pytest.approx(math.exp(0.1 - half), rel=1e-5)
    assert found.high == pytest.approx(math.exp(0.1 + half), rel=1e-5)
    assert found.pairs == 3


@pytest.mark.parametrize(
    ("options", "quantile"),
    [({}, T_95_DF3), ({"confidence": 0.99}, T_99_DF3), ({"comparisons": 4}, T_9875_DF3)],
    ids=["95 %", "99 %", "95 % over four"],
)
def test_known_answers_of_four_pairs(options: dict[str, float], quantile: float) -> None:
    # ln ratios -0.3, -0.1, 0.1, 0.3: mean 0, variance 0.2 / 3.
    found = ratio_interval([-0.3, -0.1, 0.1, 0.3], **options)  # type: ignore[arg-type]

    half = quantile * math.sqrt(0.2 / 3 / 4)
    assert found is not None
    assert math.log(found.low) == pytest.approx(-half, rel=1e-4)
    assert math.log(found.high) == pytest.approx(half, rel=1e-4)


def test_the_estimate_is_the_geometric_mean() -> None:
    found = ratio_interval([math.log(2), math.log(8), math.log(4)])

    assert found is not None
    assert found.estimate == pytest.approx(4.0)


def test_pairs_that_agree_leave_no_doubt() -> None:
    found = ratio_interval([math.log(1.5)] * 5)

    assert found is not None
    assert (found.low, found.high) == (pytest.approx(1.5), pytest.approx(1.5))


@pytest.mark.parametrize("count", range(MIN_PAIRS))
def test_too_few_pairs_are_no_interval(count: int) -> None:
    assert ratio_interval([0.5] * count) is None


@given(log_ratios)
def test_the_estimate_lies_inside(values: list[float]) -> None:
    found = ratio_interval(values)

    assert found is not None
    assert found.low <= found.estimate <= found.high


@given(log_ratios)
def test_more_comparisons_never_narrow_the_interval(values: list[float]) -> None:
    alone, among_four = ratio_interval(values), ratio_interval(values, comparisons=4)

    assert alone is not None
    assert among_four is not None
    assert among_four.low <= alone.low
    assert among_four.high >= alone.high


@given(log_ratios)
def test_swapping_the_arms_inverts_the_interval(values: list[float]) -> None:
    ours, theirs = ratio_interval(values), ratio_interval([-value for value in values])

    assert ours is not None
    assert theirs is not None
    assert theirs.low == pytest.approx(1 / ours.high)
    assert theirs.high == pytest.approx(1 / ours.low)


def test_prints_as_people_write_it() -> None:
    assert str(Interval(1.234, 1.1, 1.456, 6)) == "1.23x [1.10, 1.46]"


@pytest.mark.parametrize(("prompts", "curve"), [(3, 4), (6, 4), (12, 8)])
def test_pure_noise_is_taken_for_an_effect_in_five_per_cent_of_curves(
    prompts: int, curve: int
) -> None:
    simulated, promised = 1500, 0.05
    draws = np.random.default_rng(20240601).normal(0.0, 0.1, (simulated, curve, prompts))

    misled = sum(
        any(not found.low <= 1 <= found.high for found in intervals if found)
        for intervals in (
            [ratio_interval(list(values), comparisons=curve) for values in one] for one in draws
        )
    )

    # Bonferroni's level is barely below the promise for independent candidates, so the share
    # must lie near it on both sides: four standard deviations of a binomial share.
    spread = 4 * math.sqrt(promised * (1 - promised) / simulated)
    assert promised - spread < misled / simulated < promised + spread


def test_without_the_correction_a_curve_misleads_more_often() -> None:
    draws = np.random.default_rng(7).normal(0.0, 0.1, (500, 8, 6))

    misled = sum(
        any(
            not found.low <= 1 <= found.high
            for found in (ratio_interval(list(values)) for values in one)
            if found
        )
        for one in draws
    )

    assert misled / 500 > 0.2
